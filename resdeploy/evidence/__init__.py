"""The layers of a verdict, one module each: arrays in, records out. numpy only."""
