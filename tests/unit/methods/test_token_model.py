"""Searching by writing: mazes as tokens, writing without knowing the length, following what was written."""

from itertools import pairwise

import pytest
import torch

from foretoken.core.batch import Step
from foretoken.core.errors import ConfigError
from foretoken.core.exhibit import Grid
from foretoken.core.grid import passages
from foretoken.data.windows import WindowSampler
from foretoken.envs.recipes.maze_paths import MazePaths
from foretoken.envs.recipes.star_paths import StarPaths
from foretoken.methods.scripts.graph import WORDS
from foretoken.methods.scripts.maze import MazeScriptConfig
from foretoken.methods.scripts.star_graph import StarGraphScriptConfig
from foretoken.methods.token_model import TokenModelConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import uniform_stack
from foretoken.nn.token_networks import NextTokenConfig, PositionQueriesConfig
from foretoken.testing import check_method
from foretoken.testing.stores import SPECS

STACK = uniform_stack(AttentionConfig(num_heads=2, positions="rotary"), 16, 1).replace(init_std=0.25)
QUERIES, NEXT = PositionQueriesConfig(encoder=STACK, num_layers=1, num_heads=2), NextTokenConfig(backbone=STACK)
COMPACT = MazeScriptConfig(compact=True)
SMALL = TokenModelConfig(script=COMPACT, network=QUERIES)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORETOKEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return MazePaths(world="foretoken/Maze4x4-v0", episodes=40).open()


def batch_of(store, method, rows=16, **more):
    return WindowSampler(store, method.window.replace(**more)).draw(rows, 0)


def test_a_maze_is_written_as_the_package_writes_it(store):
    method = SMALL.replace(script=MazeScriptConfig()).build(store.spec)
    batch = batch_of(store, method)
    tokens, there = method.script.prompt(batch.observation[:, 0], torch.arange(16))
    words = [*[f"({cell // 4},{cell % 4})" for cell in range(16)], *WORDS]
    assert there.all() and tokens.shape == (16, 3 * 15 + 9, 1)
    said = [words[token] for token in tokens[0, :, 0].tolist()]
    ends = [
        f"({cell // 4},{cell % 4})"
        for cell in (int(batch.observation[0, 0, 24 + k * 16 :][:16].argmax()) for k in (0, 1))
    ]
    assert (
        said[0] == "<ADJLIST_START>"
        and said[3:46:3] == [";"] * 15
        and said[46:48] == ["<ADJLIST_END>", "<ORIGIN_START>"]
    )
    assert said[48:] == [ends[0], "<ORIGIN_END>", "<TARGET_START>", ends[1], "<TARGET_END>", "<PATH_START>"]
    joined = passages(4)[batch.observation[0, 0, :24].bool().numpy()].tolist()
    edges = tokens[0, 1:46, 0].reshape(15, 3)[:, :2].tolist()
    assert sorted(map(sorted, edges)) == sorted(joined) and edges != joined
    answer, valid = method.script.answer(batch)
    assert answer[0, valid[0]].tolist()[-1] == method.script.end and words[answer[0, 0]] == ends[0]
    assert [words[token] for token in answer[0, valid[0]].tolist()][-2] == ends[1]
    other = method.script.prompt(batch.observation[:, 0], torch.arange(16) + 1)[0]
    assert not torch.equal(other, tokens) and torch.equal(other.sort(1).values, tokens.sort(1).values)


def test_compact_mazes_hold_the_same(store):
    method = SMALL.build(store.spec)
    batch = batch_of(store, method)
    tokens, _ = method.script.prompt(batch.observation[:, 0], torch.arange(16))
    plain, _ = MazeScriptConfig().build(store.spec).prompt(batch.observation[:, 0], torch.arange(16))
    assert tokens.shape == (16, 18, 2)
    assert torch.equal(tokens[:, :15], plain[:, 1:46, 0].reshape(16, 15, 3)[:, :, :2])
    assert torch.equal(tokens[:, 15:17, 1], plain[:, [48, 51], 0])


@pytest.mark.parametrize("pad", ["left", "right"])
def test_answers_are_followed_to_the_target(store, pad):
    """What is written of a recorded episode names its moves, whichever side was padded."""
    method = SMALL.build(store.spec)
    batch = WindowSampler(store, method.window.replace(columns=("observation", "action"), pad=pad)).draw(16, 0)
    answer, valid = method.script.answer(batch)
    for row in range(16):
        actions = batch.action[row, batch.scored[row]].tolist()
        assert valid[row].sum() == len(actions) + 2
        for step, action in enumerate(actions):
            named = method.script.move(answer[[row]], torch.tensor([step]), torch.tensor([0]))
            assert named.tolist() == [action]
    for words, step, before, want in (([0, 5], 1, 2, 3), ([0, 5], 0, 2, 0), ([0, 1, 24], 1, 3, 2), ([3, 4], 0, 0, 0)):
        answer = torch.tensor([[*words, *[24] * (17 - len(words))]])  # 24 ends: no move is named
        assert method.script.move(answer, torch.tensor([step]), torch.tensor([before])).tolist() == [want]


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORETOKEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return StarPaths(episodes=16).open()


@pytest.mark.parametrize("compact", [True, False])
def test_star_graphs_are_written_and_followed(stars, compact):
    script = StarGraphScriptConfig(compact=compact).build(stars.spec)
    method = SMALL.replace(script=StarGraphScriptConfig(compact=compact)).build(stars.spec)
    batch = batch_of(stars, method, columns=("observation", "action"))
    tokens, there = script.prompt(batch.observation[:, 0], torch.arange(16))
    answer, valid = script.answer(batch)
    assert there.all() and tokens.shape == ((16, 11, 2) if compact else (16, 33, 1))
    assert answer.shape == (16, 6) and valid.all() and (answer[:, -1] == script.end).all()
    edges = tokens[:, :8] if compact else tokens[:, 1:25, 0].reshape(16, 8, 3)[..., :2]
    for row in range(16):
        joined = {frozenset(edge) for edge in edges[row].tolist()}
        way = answer[row, :-1].tolist()
        assert len(joined) == 8 and all({*pair} in joined for pair in pairwise(way))
        assert tokens[row, -2].tolist()[-1] == way[-1] if compact else tokens[row, -3, 0] == way[-1]
    for step in range(4):
        named = script.move(answer, torch.full((16,), step), torch.zeros(16, dtype=torch.int64))
        assert torch.equal(named, batch.action[:, step])
    stays = script.move(answer, torch.full((16,), 4), torch.full((16,), 9))
    assert (stays == 9).all(), "an answer that has ended goes nowhere"


class Oracle(torch.nn.Module):
    """Knows the answers, and notes what it is shown; at hidden places it is as sure as `sure` says."""

    def __init__(self, answer, sure=None):
        super().__init__()
        self.answer, self.sure, self.seen = answer, sure, []
        self.one = torch.nn.Parameter(torch.zeros(()))

    def forward(self, tokens, rank, valid, count):
        self.seen.append((tokens, rank, valid))
        size = tokens.shape[1] - 18
        logits = torch.nn.functional.one_hot(self.answer[: len(tokens), :size], 25).float()[:, -count:]
        return logits * (5.0 if self.sure is None else self.sure[:size][-count:, None])


def oracle(store, config, sure=None):
    method = config.build(store.spec)
    batch = batch_of(store, method)
    words, _ = method.script.answer(batch)
    answer = torch.full((16, method.script.longest), method.script.end)
    answer[:, : words.shape[1]] = words
    method.network = Oracle(answer[:1], sure)
    return method, batch.observation[:1, 0], answer[:1]


def test_writing_by_position_shows_nothing_later(store):
    method, observation, answer = oracle(store, SMALL)
    assert torch.equal(method.write(observation, torch.zeros(1, dtype=torch.int64)), answer)
    length = int((answer != method.script.end).sum())
    assert len(method.network.seen) == length + 1
    for place, (tokens, rank, valid) in enumerate(method.network.seen):
        assert tokens.shape[1] == 18 + place + 1 and valid.all()
        assert rank[0].tolist() == [0] * (18 + place) + [1]


def test_writing_by_confidence_puts_the_end_then_the_surest(store):
    sure = 5 + 0.3 * (torch.arange(17.0) * 5 % 17)
    method, observation, answer = oracle(store, SMALL.replace(order="confidence"), sure)
    length = int((answer != method.script.end).sum())
    assert torch.equal(method.write(observation, torch.zeros(1, dtype=torch.int64)), answer)
    shown = [rank[0, 18:] > 0 for _, rank, _ in method.network.seen]
    assert shown[0].all() and [int(hidden.sum()) for hidden in shown[1:]] == list(range(length, 0, -1))
    order = [int((before & ~after).nonzero()) for before, after in pairwise(shown[1:])]
    assert order == sure[:length].argsort(descending=True, stable=True).tolist()[: length - 1]


def test_hidden_tokens_change_no_prediction(store):
    """The loss's own logits: another word in a hidden place moves nothing."""
    method = SMALL.build(store.spec).eval()
    batch = batch_of(store, method)
    prompt, there = method.script.prompt(batch.observation[:, 0], torch.arange(16))
    answer, valid = method.script.answer(batch)
    rank = (torch.rand(answer.shape) < 0.5).long() * valid
    want = method.predict(prompt, there, answer, valid, rank)[rank > 0]
    other = torch.where((rank > 0) | ~valid, (answer + 3) % 25, answer)
    assert torch.equal(method.predict(prompt, there, other, valid, rank)[rank > 0], want)


@pytest.mark.parametrize("visibility", ["uniform", "all-but-last"])
def test_the_loss_is_the_mean_over_hidden_tokens_of_the_whole_batch(store, visibility):
    """Not over all, and not a mean of rows' means; given tokens and padding weigh nothing."""
    method = SMALL.replace(visibility=visibility).build(store.spec).train()
    batch, drawn = batch_of(store, method), {}
    predict = method.predict

    def spy(prompt, there, answer, valid, rank):
        drawn.update(answer=answer, valid=valid, rank=rank, logits=predict(prompt, there, answer, valid, rank))
        return drawn["logits"]

    method.predict = spy
    found = method.loss(batch)
    hidden = [(row, place) for row, place in drawn["valid"].nonzero().tolist() if drawn["rank"][row, place] > 0]
    answer, logits = drawn["answer"], drawn["logits"]
    errors = [-logits[at].log_softmax(-1)[answer[at]] for at in hidden]
    torch.testing.assert_close(found.total, torch.stack(errors).mean())
    assert found.weight == len(hidden) and len({int(row.gt(0).sum()) for row in drawn["rank"]}) > (
        visibility == "uniform"
    )
    right = [logits[at].argmax() == answer[at] for at in hidden]
    assert float(found.metrics["right"]) == pytest.approx(sum(map(int, right)) / len(hidden))


@pytest.mark.parametrize("rewrite", [True, False])
def test_prompts_are_written_anew_or_always_alike(store, rewrite):
    method = SMALL.replace(rewrite=rewrite).build(store.spec).train()
    batch, prompts = batch_of(store, method), []
    method.network.register_forward_pre_hook(lambda _, given: prompts.append((given[0][:, :18], given[1])))
    for seed in (1, 2):
        torch.manual_seed(seed)
        method.loss(batch)
    assert torch.equal(prompts[0][0], prompts[1][0]) != rewrite and not torch.equal(prompts[0][1], prompts[1][1])


@pytest.mark.parametrize("network", [QUERIES, NEXT])
def test_rows_write_as_if_alone_and_keep_it(store, network):
    config = SMALL.replace(network=network, visibility="uniform" if network is QUERIES else "next-token")
    method = config.build(store.spec).eval()
    batch, seed = batch_of(store, method), torch.arange(16)
    first = batch.observation[:, 0]
    together = method.write(first, seed)
    for row in (0, 7):
        assert torch.equal(method.write(first[[row]], seed[[row]])[0], together[row])
    zeros, yes = torch.zeros(16, dtype=torch.int64), torch.ones(16, dtype=torch.bool)
    step = Step(first, zeros, torch.zeros(16), torch.zeros(16), yes, ~yes, yes, zeros, seed)
    begun = method.policy.act(step, method.policy.begin(16, {}))
    assert torch.equal(begun.state["answer"], together)
    later = step._replace(first=~yes, timestep=zeros + 1, seed=seed + 99, observation=first.flip(0))
    assert torch.equal(method.policy.act(later, begun.state).state["answer"], together)


def test_open_mazes_have_fewer_edges_here_and_there(tmp_path, monkeypatch):
    """Prompts are padded in the middle; each maze is written as if it were alone."""
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path))
    stored = MazePaths(world="foretoken/OpenMaze5x5-v0", episodes=12).open()
    method = SMALL.build(stored.spec).eval()
    batch = batch_of(stored, method, rows=12)
    first, seed = batch.observation[:, 0], torch.arange(12)
    tokens, there = method.script.prompt(first, seed)
    count = first[:, : len(passages(5))].sum(1)
    assert torch.equal(there.sum(1), count + 3) and len(count.unique()) > 1
    together = method.write(first, seed)
    for row in range(12):
        alone, _ = method.script.prompt(first[[row]], seed[[row]])
        assert torch.equal(alone[0], tokens[row, there[row]])
        assert torch.equal(method.write(first[[row]], seed[[row]])[0], together[row])


def test_exhibits_show_the_maze_and_both_ways(store):
    method = SMALL.build(store.spec).eval()
    episodes = []
    batch = batch_of(store, method, columns=("observation", "reward"))
    for row in range(2):
        steps = int(batch.valid[row].sum())
        episode = batch.map(lambda leaf: leaf[[row], :steps])  # noqa: B023
        episodes.append(episode.replace(seed=torch.full((1, steps), 3)))
    (shown,) = method.exhibits(episodes)
    assert shown == method.exhibits(episodes)[0] and len(shown.panels) == 2 and shown.says.endswith("2 of 2 arrived.")
    for panel, episode in zip(shown.panels, episodes, strict=True):
        assert isinstance(panel, Grid) and len(panel.walls) == 24 - 15
        answer, _ = method.script.answer(episode)
        assert panel.paths[0].cells == tuple(divmod(cell, 4) for cell in answer[0, :-1].tolist())
        assert panel.marks["start"] == panel.paths[0].cells[0] and panel.marks["goal"] == panel.paths[0].cells[-1]


def test_what_does_not_fit_is_refused(store):
    with pytest.raises(ConfigError, match='NextTokenConfig needs visibility="next-token"'):
        SMALL.replace(network=NEXT)
    with pytest.raises(ConfigError, match="rate must lie in"):
        SMALL.replace(rate=0.0)
    with pytest.raises(ConfigError, match=r"MultiBinary\(4 S\^2 - 2 S\)"):
        SMALL.build(SPECS["discrete"])
    with pytest.raises(ConfigError, match=r"MultiBinary\(C \(C \+ 3\) / 2\)"):
        SMALL.replace(script=StarGraphScriptConfig()).build(store.spec)


@pytest.mark.parametrize(
    "config",
    [
        SMALL.replace(script=MazeScriptConfig(), visibility="permutations"),
        SMALL.replace(network=NEXT, visibility="next-token"),
        SMALL.replace(visibility="multi-forward", order="confidence"),
    ],
)
def test_method_laws(config):
    check_method(config, SPECS["maze"], compare_forward=False)
