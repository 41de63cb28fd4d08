"""What every long command shares: the folder of results and how a run goes on in it, files that
appear whole, progress, errors, options, workers, statistics, the look of figures, and reports.

`compare` and `studies` import this package; it imports neither of them.
"""
