"""The data sets that ship with innerloop; their sources and columns are described in README.md
beside this file.
"""

from pathlib import Path

COUNTRIES_LIFE_EXPECTANCY = Path(__file__).with_name("countries_life_expectancy.csv")
US_STATES_PRODUCTIVITY = Path(__file__).with_name("us_states_productivity.csv")
