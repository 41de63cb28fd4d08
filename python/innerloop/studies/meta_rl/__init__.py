"""`innerloop study meta-rl`: joint training against meta-learning in reinforcement learning.

The experiment of Gao and Sener 2020, section 5: DRS+PPO against ProMP and DRS+TRPO against
TRPO-MAML at equal numbers of environment steps. `settings` says what is asked, `units` lists the
trainings, `work` does one of them, `unfinished` keeps it on disk, `launching` runs many here or on
a cluster, `document`, `summary`, `report` and `figures` show, and `run` puts these in order for
`command`.
"""
