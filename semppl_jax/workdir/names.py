"""What the files of a run are called that more than one package knows."""

RESULTS = 'results.json'  # written last: its run is finished
INIT = 'init.json'  # weights of another checkpoint that it began with
TEACHER = 'teacher.safetensors'  # the frozen teacher, written once
TEACHER_NOTE = 'teacher.json'  # its fingerprint, written after it
UNREADABLE = 'unreadable.jsonl'  # images that others stood in for, if any
