"""Published numbers beside ours: tables, figures, verdicts, scoreboard."""
