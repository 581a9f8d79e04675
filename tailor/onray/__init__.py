"""Everything that uses Ray: training, evaluation, data preparation and jobs. No other package imports Ray."""
