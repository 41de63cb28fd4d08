"""`innerloop compare`: is MAML worth it on a given data set, or is joint training as good?

One idea per module. The question: `config`, `tables`, `frames`, `archives`, `reading`. The work:
`units`, `episodes`, `problem`, `exact`, `descent`, `measuring`, `training`, run by `pool` and kept
by `store`. The answer: `statistics`, `analysis`, `verdict`, shown by `document`, `report` and
`figures`. `run` puts these in order; `command` is the command line.
"""
