"""`innerloop study sinusoid`: MAML, first-order MAML and joint training on sine waves.

The regression task of Finn, Abbeel and Levine 2017 (section 5.1). `settings` says what is asked,
`waves` draws tasks, `units` names the trainings, `training` and `pool` train, `checkpoints` keep,
`measuring` and `summary` measure, `verdict` answers, `document`, `report` and `figures` show,
`certificates` adds the bounds, and `run` puts these in order for `command`.
"""
