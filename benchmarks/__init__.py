"""What llm-kvbranch costs and saves, beside what people would use instead.

    python -m benchmarks [--quick] [--only NAME ...] [--out benchmarks/results]

The idea: each measurement is a module that asks several contenders the same thing
and keeps every value. Its bars, its table and its plot are made from the JSON that it
writes, and from nothing else.

The invariants: contenders take turns within each round, so that whatever else the
machine does happens to all of them. An answer that is not the right one is not timed
without saying so, and what a contender cannot do is a dash with its reason.
"""
