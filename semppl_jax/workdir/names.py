"""What the files of a run are called that more than one package knows."""

RESULTS = 'results.json'  # written last: its run is finished
INIT = 'init.json'  # weights of another checkpoint that it began with
UNREADABLE = 'unreadable.jsonl'  # images that others stood in for, if any
