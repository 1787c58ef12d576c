"""What all measurements share: values, rounds, bars, tables, plots, the machine."""
