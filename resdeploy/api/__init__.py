"""The verbs of the library, one module each: files or live objects in, a file and a record out.

Commands parse, call one of these, and render its record. Heavy imports are inside the functions, so
that reading a bundle needs no torch. Nothing prints: `on_stage` and `on_progress` are called with
the progress of a verb.
"""
