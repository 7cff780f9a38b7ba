"""Networks: the one place that builds, trains and runs torch modules."""
