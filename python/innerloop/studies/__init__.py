"""Studies that reproduce published experiments and set theory beside them.

`linear_regression` sweeps the meta linear-regression experiment of Gao and Sener (2020), `meta_rl`
sets their algorithms of meta reinforcement learning against each other, `sinusoid` is MAML's sine
regression. On the command line: `innerloop study`.
"""
