"""The verbs of the library, one module each: files or live objects in, a file and a record out.

What a command does is here; `resdeploy.cli` reads its words and shows the record. Heavy imports
are inside the functions, so that reading a bundle needs no torch. Nothing prints: `on_stage` and
`on_progress` are told how far a verb is.
"""
