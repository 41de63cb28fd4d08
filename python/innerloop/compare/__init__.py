"""`innerloop compare`: is MAML worth it on a given data set, or is joint training as good?

One idea per module. The question: `config`, `tables`, `frames`, `encoding`, `archives`, `reading`.
The work: `units`, `curvature`, `episodes`, `problem`, `exact`, `descent`, `measuring`, `training`,
run by `pool` and kept by `runs.store`. The answer: `analysis`, `theory`, `verdict`, shown by
`document`, `report` and `figures`. `run` puts these in order; `command` is the command line.
"""
