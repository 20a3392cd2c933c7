"""The mathematics: balls, boxes, power means, losses and worst-case accuracy, as pure functions."""
