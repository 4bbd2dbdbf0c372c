# SPDX-License-Identifier: MIT
"""The order of moves that wait for each other, and the fewest moves to give up where they wait in circles.

The moves are the nodes of a directed graph: an edge from i to j means that i waits until j has left its old place.
An order exists if the graph has no cycle.  A set of nodes without which it has none is a feedback vertex set.  Every
rule of `reduce` keeps the size of the smallest one.  The rest is searched by branch and bound, up to a limit of work.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

Graph = dict[int, set[int]]

#: The most nodes of a search tree.  Beyond it the best set found so far is taken.
SEARCH_LIMIT = 20_000
#: The most nodes of a graph that is searched.  A larger one gets the greedy set only.
SEARCH_NODES = 200


def order(waits: Graph) -> list[int]:
    """Return the nodes of a graph without cycles so that each comes after the nodes that it waits for."""
    waiting = {node: len(others) for node, others in waits.items()}
    followers = _reverse(waits)
    ready = sorted((node for node, count in waiting.items() if not count), reverse=True)
    done = []
    while ready:
        node = ready.pop()
        done.append(node)
        for other in sorted(followers[node], reverse=True):
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    assert len(done) == len(waits), "the moves wait in a circle"
    return done


def smallest_cut(waits: Graph) -> tuple[set[int], bool]:
    """Return a feedback vertex set, and whether it is proven to be a smallest one."""
    graph = _Digraph(waits)
    cut = graph.reduce(graph.after)
    proven = True
    for part in _components(graph.after):
        found, exact = _cut_of(_Digraph({node: graph.after[node] & part for node in part}))
        cut |= found
        proven &= exact
    return cut, proven


class _Digraph:
    """A graph with its edges in both directions."""

    def __init__(self, waits: Graph) -> None:
        self.after = {node: set(others) for node, others in waits.items()}
        self.before = _reverse(waits)

    def copy(self) -> _Digraph:
        return _Digraph(self.after)

    def weight(self, node: int) -> int:
        return len(self.after[node]) * len(self.before[node])

    def busiest(self) -> int:
        return max(self.after, key=lambda node: (self.weight(node), -node))

    def take_out(self, node: int, joined: set[int]) -> set[int]:
        """Remove a node; the nodes that waited for it then wait for `joined`.  Return its former neighbours.

        For a node that is cut, `joined` is empty.  For one that is not, it has the nodes that the node waits for."""
        after, before = self.after.pop(node) - {node}, self.before.pop(node) - {node}
        for other in after:
            self.before[other].remove(node)
            if other in joined:
                self.before[other] |= before
        for other in before:
            self.after[other].remove(node)
            self.after[other] |= joined
        return after | before

    def reduce(self, todo: Iterable[int]) -> set[int]:
        """Take nodes out until no rule applies to the nodes `todo` and to all that they change; return the cut ones.

        A node that waits for itself is cut.  A node that waits for none, or for which none waits, is in no cycle.  A
        node with one neighbour on a side need not be cut, because every cycle through it contains this neighbour."""
        cut: set[int] = set()
        stack = sorted(todo)
        while stack:
            node = stack.pop()
            if node not in self.after:
                continue
            if node in self.after[node]:
                cut.add(node)
                stack.extend(self.take_out(node, set()))
            elif len(self.after[node]) <= 1 or len(self.before[node]) <= 1:
                stack.extend(self.take_out(node, self.after[node]))
        return cut


# ---- one strongly connected component --------------------------------------------------------------------------------


def _cut_of(graph: _Digraph) -> tuple[set[int], bool]:
    bound = _bound(graph.after)
    best = _greedy(graph.copy())
    if len(best) <= bound:
        return best, True
    if len(graph.after) > SEARCH_NODES:
        return best, False
    search = _Search(best)
    search.run(graph, set())
    return search.best, search.work < SEARCH_LIMIT


def _greedy(graph: _Digraph) -> set[int]:
    """Cut a node with many pairs of neighbours, until nothing is left.  O(e log e) for e edges.

    The heap has old weights.  A node whose weight has become smaller goes back into it."""
    cut = graph.reduce(graph.after)
    heap = [(-graph.weight(node), node) for node in graph.after]
    heapq.heapify(heap)
    while graph.after:
        weight, node = heapq.heappop(heap)
        if node in graph.after and graph.weight(node) < -weight:
            heapq.heappush(heap, (-graph.weight(node), node))
        elif node in graph.after:
            cut.add(node)
            cut |= graph.reduce(graph.take_out(node, set()))
    return cut


class _Search:
    """Branch on one node: it is cut, or it is not and its neighbours are joined around it."""

    def __init__(self, best: set[int]) -> None:
        self.best = best
        self.work = 0

    def run(self, graph: _Digraph, cut: set[int]) -> None:
        """Improve `best` by sets that contain `cut`.  Changes the graph."""
        self.work += 1
        cut = cut | graph.reduce(graph.after)
        if self.work >= SEARCH_LIMIT or len(cut) + _bound(graph.after) >= len(self.best):
            return
        if not graph.after:
            self.best = cut
            return
        node = graph.busiest()
        without = graph.copy()
        without.take_out(node, set())
        self.run(without, cut | {node})
        graph.take_out(node, graph.after[node])
        self.run(graph, cut)


def _bound(graph: Graph) -> int:
    """Return a lower bound for a graph with a cycle, and 0 for an empty one.

    It is the number of disjoint pairs of nodes that wait for each other, and at least 1."""
    used: set[int] = set()
    pairs = 0
    for node, others in graph.items():
        partner = next((o for o in others if o not in used and node in graph[o]), None)
        if node not in used and partner is not None:
            used |= {node, partner}
            pairs += 1
    return max(pairs, 1) if graph else 0


# ---- graphs ----------------------------------------------------------------------------------------------------------


def _reverse(graph: Graph) -> Graph:
    result: Graph = {node: set() for node in graph}
    for node, others in graph.items():
        for other in others:
            result[other].add(node)
    return result


def _components(graph: Graph) -> list[set[int]]:
    """Return the strongly connected components of more than one node (Tarjan, without recursion)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found = []
    for root in graph:
        if root in number:
            continue
        path = [(root, iter(sorted(graph[root])))]
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while path:
            node, others = path[-1]
            for other in others:
                if other not in number:
                    number[other] = low[other] = len(number)
                    stack.append(other)
                    on_stack.add(other)
                    path.append((other, iter(sorted(graph[other]))))
                    break
                if other in on_stack:
                    low[node] = min(low[node], number[other])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == number[node]:
                    part = set()
                    while node not in part:
                        part.add(stack.pop())
                    on_stack -= part
                    if len(part) > 1:
                        found.append(part)
    return found
