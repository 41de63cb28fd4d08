"""The data set that ships with innerloop; its source and columns are described in README.md beside
this file.
"""

from pathlib import Path

US_STATES_PRODUCTIVITY = Path(__file__).with_name("us_states_productivity.csv")
