"""What is shown: tables and figures of the documentation, made from result files."""
