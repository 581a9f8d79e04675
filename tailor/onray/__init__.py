"""Everything that uses Ray: placement of workers, training, evaluation, data preparation and jobs. No other package imports Ray."""
