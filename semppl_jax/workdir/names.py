"""What the files of a run are called that more than one package knows."""

RESULTS = 'results.json'  # written last: its run is finished
UNREADABLE = 'unreadable.jsonl'  # images that others stood in for, if any
