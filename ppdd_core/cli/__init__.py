"""The program `ppdd`: one module per noun, plus the verbs that stand alone.

Nothing here imports torch before a command that needs it runs.
"""
