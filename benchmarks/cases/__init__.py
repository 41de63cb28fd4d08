"""What is measured: the cases with their data, their exact answers, and what each must cost."""
