"""A recurrent policy on CartPole that sees positions alone: velocities are hidden, so it must remember.

PPO, whose update is one call over a rollout [T, B] with `resets=`: rows begin anew where an episode ends. Beside it the
same through torch.nn, with a call for each step, between which the states of rows that begin anew are set to zero.
Compares loss, gradients and time of one update; then trains each until the mean return of new episodes reaches --goal,
and a policy that forgets at every step as well. Prints frames, seconds and the return of 100 further episodes; draws
return by frames and by seconds.

    python examples/cartpole.py [--ways fastrnn torch forgetful] [--goal 475] [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from rich.progress import TaskID
from rich.table import Table
from torch import Tensor, nn

import fastrnn
from recipe.files import save_figure
from recipe.show import console, progress, table

ENVS, STEPS = 16, 128  # B and T of a rollout
EPOCHS = 8  # updates from one rollout
DISCOUNT, TRACE = 0.99, 0.95
FINAL = 100  # episodes that a trained policy is judged by
CLIP, ENTROPY, RATE = 0.2, 0.005, 2e-3
SCALE = 0.02  # of rewards, so that values are about 1
EVERY = 5  # rollouts from one evaluation to the next
State = tuple[Tensor, Tensor]


class Policy(nn.Module):
    """seen [T, B, 2], state, resets [T, B] -> logits [T, B, 2], values [T, B], state; acting, T is 1"""

    def __init__(self, layer: type[nn.LSTM], hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, hidden), nn.Tanh())
        self.rnn = layer(hidden, hidden)
        self.actor, self.critic = nn.Linear(hidden, 2), nn.Linear(hidden, 1)
        for linear, gain in ((self.encoder[0], 1.0), (self.actor, 0.01), (self.critic, 1.0)):
            nn.init.orthogonal_(linear.weight, gain)
            nn.init.zeros_(linear.bias)

    def recur(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        return self.rnn(x, state, resets=resets)

    def forward(self, seen: Tensor, state: State, resets: Tensor) -> tuple[Tensor, Tensor, State]:
        y, state = self.recur(self.encoder(seen), state, resets)
        return self.actor(y), self.critic(y).squeeze(-1), state

    def zero_state(self, rows: int) -> State:
        zeros = torch.zeros(1, rows, self.rnn.hidden_size)
        return zeros, zeros


class LoopedPolicy(Policy):
    """As torch.nn can do it, and sb3-contrib does: a call for each step."""

    def recur(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        outputs = []
        for step, begins in zip(x, resets, strict=True):
            kept = ~begins[:, None]
            y, state = self.rnn(step[None], (state[0] * kept, state[1] * kept))
            outputs.append(y)
        return torch.cat(outputs), state


class ForgetfulPolicy(Policy):
    """Every step begins anew: what can be done without a memory."""

    def recur(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        return super().recur(x, state, torch.ones_like(resets))


POLICIES: dict[str, Callable[[int], Policy]] = {
    "fastrnn": lambda hidden: Policy(fastrnn.LSTM, hidden),
    "torch": lambda hidden: LoopedPolicy(nn.LSTM, hidden),
    "forgetful": lambda hidden: ForgetfulPolicy(fastrnn.LSTM, hidden),
}


@dataclass
class Rollout:
    """What an update needs; all but the state are [T, B] or [T, B, 2]."""

    seen: Tensor
    state: State  # before the first step
    resets: Tensor
    acted: Tensor  # an action had an effect; not where an ended episode gave way to the next
    actions: Tensor
    logs: Tensor  # of the actions' probabilities
    advantages: Tensor
    returns: Tensor


class Actors:
    """Environments side by side and what the policy remembers of each.

    Where an episode ends, the environment shows its last state, ignores one action and then shows the next episode's
    first state. The value of that last state is what a truncated episode is still worth.
    """

    def __init__(self, policy: Policy, envs: VectorEnv, seed: int) -> None:
        assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
        self.policy, self.envs = policy, envs
        self.state = policy.zero_state(envs.num_envs)
        self.seen = self.see(envs.reset(seed=seed)[0])
        self.begins = torch.ones(envs.num_envs, dtype=torch.bool)
        self.ended = torch.zeros(envs.num_envs, dtype=torch.bool)

    @staticmethod
    def see(observations: np.ndarray) -> Tensor:
        """The cart's position and the pole's angle, without their velocities, in units of about 1."""
        return torch.from_numpy(observations[:, ::2]) * torch.tensor([1.0, 10.0])

    def step(self, greedy: bool = False) -> tuple[Tensor, ...]:
        logits, values, self.state = self.policy(self.seen[None], self.state, self.begins[None])
        logs = logits[0].log_softmax(-1)
        actions = logs.argmax(-1) if greedy else torch.multinomial(logs.exp(), 1)[:, 0]
        before = (
            self.seen,
            self.begins,
            ~self.ended,
            actions,
            logs.gather(1, actions[:, None])[:, 0],
            values[0],
        )
        observations, rewards, terminated, truncated, _ = self.envs.step(actions.numpy())
        self.seen, self.begins = self.see(observations), self.ended
        terminated = torch.from_numpy(terminated)
        self.ended = terminated | torch.from_numpy(truncated)
        return *before, torch.from_numpy(rewards), terminated, self.ended

    @torch.no_grad()
    def rollout(self) -> Rollout:
        state = self.state
        steps = [self.step() for _ in range(STEPS)]
        seen, resets, acted, actions, logs, values, rewards, terminated, ended = map(
            torch.stack, zip(*steps, strict=True)
        )
        last = self.policy(self.seen[None], self.state, self.begins[None])[1]
        following = torch.cat([values[1:], last]) * ~terminated
        errors = SCALE * rewards + DISCOUNT * following - values
        advantages, sum_ = torch.zeros_like(values), torch.zeros(ENVS)
        for t in reversed(range(STEPS)):
            sum_ = errors[t] + DISCOUNT * TRACE * ~ended[t] * sum_
            advantages[t] = sum_
        return Rollout(seen, state, resets, acted, actions, logs, advantages, advantages + values)


def make_envs(count: int) -> VectorEnv:
    return gym.make_vec("CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point")


@torch.no_grad()
def evaluate(policy: Policy, seed: int, episodes: int = 32) -> float:
    """The mean return of new episodes, always with the likelier action."""
    actors = Actors(policy, make_envs(episodes), seed)
    total, running = torch.zeros(episodes), torch.ones(episodes, dtype=torch.bool)
    while running.any():
        *_, rewards, _, ended = actors.step(greedy=True)
        total += rewards * running
        running &= ~ended
    return float(total.mean())


def loss_of(policy: Policy, rollout: Rollout) -> Tensor:
    """PPO's clipped objective, the error of the values and a little entropy."""
    logits, values, _ = policy(rollout.seen, rollout.state, rollout.resets)
    logs = logits.log_softmax(-1)
    acted = rollout.acted
    ratio = (logs.gather(-1, rollout.actions[..., None])[..., 0] - rollout.logs).exp()
    advantages = rollout.advantages
    advantages = (advantages - advantages[acted].mean()) / (advantages[acted].std() + 1e-8)
    gains = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
    entropy = -(logs.exp() * logs).sum(-1)
    errors = (values - rollout.returns).square()
    return (errors - gains - ENTROPY * entropy)[acted].mean()


@dataclass
class Run:
    frames: list[int] = field(default_factory=list)  # at each evaluation
    seconds: list[float] = field(default_factory=list)  # of training until then, without evaluations
    returns: list[float] = field(default_factory=list)
    acting: float = 0.0  # seconds of all that went into rollouts
    final: float = 0.0  # the return of FINAL further episodes


def compare_updates(args: argparse.Namespace) -> Table:
    """One update of one rollout by both ways, in turn."""
    torch.manual_seed(args.seed)
    policies = {way: POLICIES[way](args.hidden) for way in ("fastrnn", "torch")}
    policies["torch"].load_state_dict(policies["fastrnn"].state_dict())
    rollout = Actors(policies["fastrnn"], make_envs(ENVS), args.seed).rollout()
    seconds: dict[str, list[float]] = {way: [] for way in policies}
    losses, gradients = {}, {}
    for _ in range(args.repeats):
        for way, policy in policies.items():
            policy.zero_grad()
            begin = time.perf_counter()
            loss = loss_of(policy, rollout)
            loss.backward()
            seconds[way].append(time.perf_counter() - begin)
            losses[way] = loss.item()
            gradients[way] = torch.cat([p.grad.flatten() for p in policy.parameters()])
    difference = float((gradients["fastrnn"] - gradients["torch"]).norm() / gradients["torch"].norm())
    if not difference < 1e-4:
        raise SystemExit(f"cartpole: the gradients of both ways are {difference:.1e} apart")
    begun = int(rollout.resets.sum())
    console.print(
        f"one update: {STEPS} steps x {ENVS} environments, {begun} episodes begin; "
        f"gradients of both ways differ by {difference:.0e}"
    )
    out = table("One update", "way", "loss", "forward and backward, ms", "times")
    for way in policies:
        times = median(seconds[way]) / median(seconds["fastrnn"])
        out.add_row(way, f"{losses[way]:.6f}", f"{median(seconds[way]) * 1e3:.2f}", f"{times:.1f}")
    return out


def train(way: str, args: argparse.Namespace, show: Callable[[int, float], None]) -> Run:
    torch.manual_seed(args.seed)
    policy = POLICIES[way](args.hidden)
    optimizer = torch.optim.Adam(policy.parameters(), lr=RATE, eps=1e-5)
    actors = Actors(policy, make_envs(ENVS), args.seed)
    run, updating, best = Run(), 0.0, 0.0
    for count in range(1, args.rollouts + 1):
        begin = time.perf_counter()
        rollout = actors.rollout()
        middle = time.perf_counter()
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            loss_of(policy, rollout).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimizer.step()
        run.acting += middle - begin
        updating += time.perf_counter() - middle
        if count % EVERY == 0 or count == args.rollouts:
            run.frames.append(count * ENVS * STEPS)
            run.seconds.append(run.acting + updating)
            run.returns.append(evaluate(policy, seed=args.seed + 1000 + count))
            best = max(best, run.returns[-1])
        show(count, best)
        if best >= args.goal:
            break
    run.final = evaluate(policy, args.seed + 100_000, FINAL)
    return run


def draw(runs: dict[str, Run], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for way, run in runs.items():
        label = f"{way}, {run.seconds[-1]:.0f} s"
        axes[0].plot(run.frames, run.returns, "o-", markersize=3, label=label)
        axes[1].plot(run.seconds, run.returns, "o-", markersize=3, label=label)
    axes[0].set(title="CartPole without velocities", xlabel="frames", ylabel="mean return", ylim=(0, 510))
    axes[1].set(title="The same by time", xlabel="seconds of training")
    axes[0].legend()
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--ways", nargs="+", choices=tuple(POLICIES), default=list(POLICIES), metavar="WAY")
    parser.add_argument("--goal", type=float, default=475, help="the mean return at which training ends")
    parser.add_argument("--rollouts", type=int, default=60, help="or after so many, whatever comes first")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    args = parser.parse_args()
    args.repeats = 20
    if args.quick:
        args.ways, args.goal, args.repeats = ["fastrnn"], min(args.goal, 150), 3
    if min(args.rollouts, args.hidden) < 1:
        parser.error("sizes must be positive")
    console.print(compare_updates(args))
    runs = {}
    with progress() as bar:
        for way in args.ways:
            line = bar.add_task(way, total=args.rollouts)

            def show(count: int, best: float, line: TaskID = line, way: str = way) -> None:
                bar.update(line, completed=count, description=f"{way}, return {best:.0f}")

            runs[way] = train(way, args, show)
            bar.stop_task(line)
    out = table(
        "Training", "way", "frames", "seconds", "of it acting", f"mean return of {FINAL} further episodes"
    )
    for way, run in runs.items():
        out.add_row(
            way, f"{run.frames[-1]:,}", f"{run.seconds[-1]:.1f}", f"{run.acting:.1f}", f"{run.final:.1f}"
        )
    console.print(out)
    draw(runs, args.out / "cartpole.png")
    console.print(f"wrote {args.out / 'cartpole.png'}")


if __name__ == "__main__":
    main()
