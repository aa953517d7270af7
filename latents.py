"""What each level of the latent does, from the posterior and prior of a batch; docs/latents.md says how to read it."""

import math

import torch
from torch import Tensor

from networks import RSSM, State

STATISTICS = ("kl", "prior_entropy", "post_entropy", "perplexity", "active", "delta")
ACTIVE_NATS = 0.01  # information from which a categorical counts as active


@torch.no_grad()
def level_statistics(dynamics: RSSM, post: State, prior: State) -> dict[str, Tensor]:
    """Statistics of every level under names such as `kl_top`, means over the batch (B, T), information in nats.

    - `kl`: unclipped KL(posterior || prior), summed over categoricals.
    - `prior_entropy`, `post_entropy`: entropy, summed over categoricals.
    - `perplexity`: exp of the entropy of the code averaged over the batch, mean over categoricals: between 1 and K.
    - `active`: categoricals whose code tells at least `ACTIVE_NATS` about its posterior: entropy of the average code minus average
      entropy, which is the mutual information within the batch. The bottom's posterior also follows the top's code.
    - `delta`: root mean square of what the observation adds to the prior's logits (in the bottom level the residual).

    Gaussian levels have only the first three.
    """
    kls = dynamics.kl_per_level(post, prior)
    metrics = {}
    for name, level in dynamics.levels.items():
        q, p = dynamics.get_dist(post, name), dynamics.get_dist(prior, name)
        metrics.update(
            {f"kl_{name}": kls[name].mean(), f"prior_entropy_{name}": p.entropy().mean(), f"post_entropy_{name}": q.entropy().mean()}
        )
        if level.discrete:
            average = q.probs.flatten(0, -3).mean(0)  # (S, K)
            code_entropy = torch.special.entr(average).sum(-1)  # (S,)
            entropy = torch.special.entr(q.probs).sum(-1).flatten(0, -2).mean(0)  # (S,)
            delta = (post["logit" + level.suffix] - prior["logit" + level.suffix]).float()
            delta = delta - delta.mean(-1, keepdim=True)  # a constant over the classes changes nothing
            metrics.update(
                {
                    f"perplexity_{name}": code_entropy.exp().mean(),
                    f"active_{name}": (code_entropy - entropy > ACTIVE_NATS).sum().float(),
                    f"delta_{name}": delta.square().mean().sqrt(),
                }
            )
    return metrics


@torch.no_grad()
def information(dynamics: RSSM, post: State) -> dict[str, float]:
    """Nats that the code of each categorical level tells about the step that it was drawn for, beyond what the levels above tell.

    From lower bounds of the mutual information between a step and the codes of a level and all above it, of at most ln N for N steps: the
    mean of ln q(z_i | step i) - ln mean_j q(z_i | step j) (Poole et al. 2019, with the posterior as critic). The first level has its
    bound; a further one has what the bound grows by. So what the bottom only repeats of the top, or of the top's chance, counts
    for nothing.

    Args:
        post: posterior states of N steps, (N, ...).
    """
    found, log_likelihood, told = {}, 0.0, 0.0
    for name, level in dynamics.levels.items():
        if level.discrete:
            log_likelihood = log_likelihood + dynamics.code_likelihoods(name, post)  # (N codes, N steps)
            bound = float((log_likelihood.diagonal() - log_likelihood.logsumexp(1)).mean() + math.log(len(log_likelihood)))
            found[name], told = bound - told, bound
    return found
