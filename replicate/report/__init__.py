"""Published numbers beside ours: intervals, tables, figures, verdicts, scoreboard.

Nothing here is imported by the trainers except `replicate.report.provenance`, so this package imports none of its modules.
"""
