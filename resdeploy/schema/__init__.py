"""Every record that crosses a stage, and its JSON form.

A record is frozen, holds no arrays, names its units, and stores nothing that can be derived.
`XSpec` is a request, `XReport` or `XResult` an outcome, `XInfo` something observed. A verdict is a
property with a name (`passed`, `complete`), never the record's truth value.

The standard library only: a target that cannot import numpy can still read a record. One module
for each subject, and no list of them all here: making a record's class takes a millisecond, and the
process that a benchmark is timed in needs few of them.
"""
