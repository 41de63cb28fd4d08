"""`innerloop compare`: is MAML worth it on a given data set, or is joint training with fine-tuning
as good?

One idea per module: `config` (what was asked), `tables`, `frames`,
`archives`, `reading` (the data), `episodes` (splits and
draws), `training` (one unit of work), `pool` and `store` (running units, keeping them),
`statistics`, `analysis` and `verdict` (numbers to an answer), `report` and `figures` (showing it),
`command` (the command line).
"""
