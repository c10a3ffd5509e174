"""Lower precision: int8, float16 and bfloat16, each judged on inputs it was not made with."""
