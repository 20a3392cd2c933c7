"""The mathematics of docs/theory.md, formula by formula, as pure functions that know nothing of training or evaluation.

| module | what it answers | section of theory |
|---|---|---|
| `ground_norm` | how long are displacements and gradients, and which direction is the steepest | 1, 2 |
| `ball` | what is the threat, who gets which share of the budget, what has been spent | 1, 2, 4 |
| `power_mean` | what is (E v^e)^(1/e) over images, batches and ranks | 1, 2 |
| `sensitivity` | what is Upsilon, and over which images | 2, 9 |
| `box` | what is the best step inside [0, 1]^n, and the shortest one that gains what is asked | 2 |
| `losses` | what is ascended, and when is an image classified correctly | 1, 3 |
| `robustness_curve` | what is the worst-case accuracy in every ball | 5 |
| `enclosure` | between which accuracies do certificate and attack put it | 5, 11 |
| `band` | what do the sample's accuracies say about the distribution of the images | 7, 12 |
| `paired_differences` | which of two networks keeps more accuracy, judged on the same images | 12 |
"""
