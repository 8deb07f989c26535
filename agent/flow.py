"""The search as a LangGraph graph: reconcile → propose → submit → poll → tell → decide → report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from langgraph.graph import END, START, StateGraph

from agent.search import Next, Search, SearchState


def build_flow(search: Search) -> Any:
    """Return the compiled graph over ``search``.

    A node that asks for approval goes between propose and submit; a checkpointer is an argument of ``compile``.
    """
    graph = StateGraph(SearchState)
    graph.add_node("reconcile", _without_state(search.reconcile))
    graph.add_node("propose", _without_state(search.propose))
    graph.add_node("submit", search.submit)
    graph.add_node("poll", _without_state(search.poll))
    graph.add_node("tell", search.tell)
    graph.add_node("decide", _without_state(search.decide))
    graph.add_node("report", _without_state(search.report))
    graph.add_edge(START, "reconcile")
    graph.add_edge("propose", "submit")
    graph.add_edge("submit", "poll")
    graph.add_edge("poll", "tell")
    graph.add_edge("tell", "decide")
    for node in ("reconcile", "decide"):
        graph.add_conditional_edges(node, _next, ["propose", "submit", "poll", "report"])
    graph.add_edge("report", END)
    return graph.compile()


def run_flow(search: Search) -> dict[str, Any]:
    """Take ``search`` from reconcile to report and return what report found."""
    # Every node counts as a step, and a search has no limit of them: trials × five.
    state: SearchState = build_flow(search).invoke({}, {"recursion_limit": sys.maxsize})
    return state["result"]


def _without_state(work: Callable[[], SearchState]) -> Any:
    def node(state: SearchState) -> SearchState:  # noqa: ARG001 - LangGraph gives it to every node
        return work()

    return node


def _next(state: SearchState) -> Next:
    return state["next"]
