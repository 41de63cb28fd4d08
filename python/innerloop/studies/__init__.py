"""Studies that reproduce published experiments and set theory beside them.

`linear_regression` sweeps the meta linear-regression experiment of Gao and Sener (2020). On the
command line: `innerloop study`.
"""
