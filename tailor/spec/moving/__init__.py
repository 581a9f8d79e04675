"""`tailor import`: the configuration of another trainer as a recipe, by the tables of `tailor.spec.trainers`."""
