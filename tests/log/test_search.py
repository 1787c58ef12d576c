"""Searching a log and listing its trees."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_kvbranch.log.marks import mark
from llm_kvbranch.log.search import Filter, list_trees, match_of, search_responses
from llm_kvbranch.log.tree import Forest

from ..support.logged import HOSTILE, grow


class TestSearch:
    "Fails if something typed is an error, or a match is missed"

    @pytest.fixture
    def ids(self, log):
        one = log.begin("Why is the sky blue?", "Because of Rayleigh scattering.")
        two = log.go_on(one, "And the sea?", "It mirrors the blue sky.")
        other = log.begin("Name a bird", "A blue jay.")
        return one, two, other

    def found(self, log, words, **more):
        return {each.id for each in search_responses(log.db, words, **more)}

    def test_words(self, log, ids):
        one, two, other = ids
        assert self.found(log, "blue") == set(ids)
        assert self.found(log, "sky blue") == {one, two}
        assert self.found(log, '"blue sky"') == {two}
        assert self.found(log, "RAYLEIGH") == {one}
        assert self.found(log, "scat") == {one}  # the last word is a prefix
        assert self.found(log, "scat blue") == set()
        assert self.found(log, '"scat"') == set()
        assert self.found(log, "blue", among=[other, two]) == {other, two}
        assert len(search_responses(log.db, "blue", n=1)) == 1

    def test_hits_are_what_was_looked_for(self, log, ids):
        for each in search_responses(log.db, "sky blue"):
            hits = {each.snippet[a:b].lower() for a, b in each.hits}
            assert hits == {"sky", "blue"}

    @pytest.mark.parametrize(
        "typed",
        ["", " ", '"', '""', '"a', "*", "a*b", "a OR", "NOT", "(", "a:b", "-a", "^a",
         "NEAR(a b)", "{a b}: c", "\0", "a\0b", "'", "; drop table turns", "日本", "😀",
         "prompt : blue", "+", "a + b", "x" * 5000],
    )  # fmt: skip
    def test_nothing_that_is_typed_is_a_mistake(self, log, ids, typed):
        search_responses(log.db, typed)
        list_trees(log.history, Filter(typed))

    @given(st.text())
    @settings(max_examples=200)
    def test_nor_anything_else(self, typed):
        import sqlite3

        db = sqlite3.connect(":memory:")
        db.execute("create virtual table t using fts5(a)")
        if (match := match_of(typed)) is not None:
            try:
                match.encode()
            except UnicodeEncodeError:
                return
            db.execute("select * from t where t match ?", [match]).fetchall()
        db.close()

    @pytest.mark.parametrize("name", HOSTILE)
    def test_snippets_of_anything(self, log, name):
        log.begin(HOSTILE[name], "needle " + HOSTILE[name])
        (each,) = search_responses(log.db, "needle")
        assert len(each.snippet) <= 300
        assert "needle" in {each.snippet[a:b] for a, b in each.hits}


class TestListing:
    "Fails if the list misses a conversation, or has one twice"

    @pytest.mark.parametrize(
        "wanted", [Filter(), Filter("yes"), Filter(model="parrot")]
    )
    @pytest.mark.parametrize("n", [1, 3, 100])
    def test_all_of_them_once_page_by_page(self, log, wanted, n):
        ids = grow(log, 2, 60)
        forest = Forest(log.history)
        roots = {forest.ancestry.root(each) for each in ids}
        listed, before = [], None
        for _ in range(100):
            page = list_trees(
                log.history, Filter(wanted.words, wanted.model, before=before), n
            )
            listed += page.trees
            before = page.before
            assert len(page.trees) <= n
            if before is None:
                break
        assert [tree.root.id for tree in listed]
        assert len(listed) == len({tree.root.id for tree in listed})
        keys = [tree.fitting[0] for tree in listed]
        assert keys == sorted(keys, reverse=True)
        if wanted.words:
            wanted_ids = {each.id for each in search_responses(log.db, "yes", n=1000)}
            roots = {forest.ancestry.root(each) for each in wanted_ids}
            assert {id for tree in listed for id in tree.fitting} == wanted_ids
        assert {tree.root.id for tree in listed} == roots

    def test_stars(self, log):
        one, other = log.begin("Why?", "Because."), log.begin("How?", "So.")
        assert not list_trees(log.history, Filter(starred=True)).trees
        mark(log.history, one, starred=True)
        mark(log.history, other, note="no star")
        (tree,) = list_trees(log.history, Filter(starred=True)).trees
        assert tree.fitting == [one]

    def test_models(self, log):
        log.begin("Why?", "Because.")
        log.model.model_id = "other"
        other = log.begin("How?", "So.")
        (tree,) = list_trees(log.history, Filter(model="other")).trees
        assert tree.root.id == other


def test_a_page_of_trees_takes_few_searches(log):
    "One for the page and one for its trees, not one for each: they read the whole log"
    counts = []
    for _ in range(2):
        for _ in range(6):
            log.begin("Why is it blue?", "Because.")
        made = []
        with log.db.tracer(lambda sql, _, made=made: made.append(sql)):
            assert list_trees(log.history, Filter("blue")).trees
        counts.append(sum("fts match" in sql for sql in made))
    assert counts[0] == counts[1]
