"""The steps of `first_contact.sh`: what a first visit to a GPU measures, in order of its worth.

`python benchmarks/run.py contact STEP FOLDER` takes one step and writes what it finds into FOLDER
piece by piece, so that whatever ends it takes only the piece at hand (`record.py`). The script
decides when and for how long; nothing here waits for anything but its own step.
"""
