"""Print an order file as JSON. (What the agents of the examples work on.)"""

import argparse
import csv
import json
import sys

parser = argparse.ArgumentParser(prog="export.py")
parser.add_argument("source")
parser.add_argument("--delimiter", default=",")
args = parser.parse_args()
with open(args.source, encoding="utf-8") as stream:
    rows = list(csv.DictReader(stream, delimiter=args.delimiter))
if len(rows[0]) < 2:
    sys.exit(f"export.py: error: {args.source} has one column only; is {args.delimiter!r} its delimiter?")
print(json.dumps(rows))
