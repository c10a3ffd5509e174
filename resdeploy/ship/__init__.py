"""What `ship` adds to the verbs that it strings together: samples, stages, and the time told."""
