"""The report of one run: a single HTML file that needs no network, no script and no other file.

It reads the run folder (run.json, metrics.jsonl, evaluations/*.json, exhibits/*.json, videos/index.json) and leaves out nothing
silently: what is missing is named, with the command that makes it. The same folder always gives the same bytes.

    foretoken report runs/hopper            writes runs/hopper/report.html

`page` puts the sections together, `record` reads the folder; every other file is one section, `draw(run) -> HTML`, "" where the
run has nothing of its kind.
"""

from foretoken.evaluation.report.page import write_report
