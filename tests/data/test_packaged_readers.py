"""The readers turn the raw files of packaged sources into clean rows."""

import bz2
import gzip
import json
import zipfile
from pathlib import Path

from llm2comp.data import packaged_readers

WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">
<page><title>Ferry</title><ns>0</ns><revision><text>{{Infobox}}
'''Ferry''' is a [[boat|ship]].&lt;ref&gt;Smith, ''Boats''&lt;/ref&gt; SENTENCES
[[File:Ferry.jpg|thumb|A ferry]]
{|
| a table SENTENCES
|}
Too short.</text></revision></page>
<page><title>Talk</title><ns>1</ns><revision><text>SENTENCES</text></revision></page>
<page><title>Boat</title><ns>0</ns><redirect title="Ferry"/><revision><text>SENTENCES</text>
</revision></page>
</mediawiki>"""


def test_mark_up_of_wikipedia_is_removed(tmp_path: Path) -> None:
    dump = WIKI.replace("SENTENCES", " ".join(["It crosses the water."] * 20))
    (tmp_path / "enwiki-x.bz2").write_bytes(bz2.compress(dump.encode()))
    (row,) = packaged_readers.enwiki_passages(tmp_path)
    assert row["text"].startswith("Ferry is a ship. It crosses the water. It")


def article(journal: str, title: str, abstract: str, language: str = "eng") -> str:
    parts = f"<Abstract><AbstractText>{abstract}</AbstractText></Abstract>" if abstract else ""
    return (
        f"<PubmedArticle><MedlineCitation><Article><Journal><Title>{journal}</Title></Journal>"
        f"<ArticleTitle>{title}</ArticleTitle>{parts}<Language>{language}</Language>"
        "</Article></MedlineCitation></PubmedArticle>"
    )


def test_articles_of_the_test_journals_are_not_for_training(tmp_path: Path) -> None:
    old = [
        article("Old", "A <i>rat</i> study", "Rats ran."),
        article("Old", "No abstract", ""),
        article("Old", "Etude", "Les rats.", "fre"),
    ]
    new = [article(f"J{i}", f"Title {i}{j}", "Text.") for i in range(20) for j in range(2)]
    new.append(article("Rare", "Rare title", "Rare text."))
    for name, articles in {"pubmed20n0014": old, "pubmed21n1298": new}.items():
        xml = f"<PubmedArticleSet>{''.join(articles)}</PubmedArticleSet>"
        (tmp_path / f"{name}.xml.gz").write_bytes(gzip.compress(xml.encode()))
    assert list(packaged_readers.pubmed_pairs(tmp_path)) == [
        {"anchor": "A rat study", "positive": "Rats ran."},
        {"anchor": "Rare title", "positive": "Rare text."},
    ]
    assert [row["text"] for row in packaged_readers.pubmed_passages(tmp_path)] == [
        "Rats ran.",
        "Rare text.",
    ]
    labels = [row["label"] for row in packaged_readers.pubmed_journals(tmp_path)]
    assert len(labels) == 40
    assert "Rare" not in labels


def test_news_without_text_are_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "NewsArticles.zip", "w") as file:
        file.writestr("NewsArticles.csv", 'title,text\nA,"One, two\nthree"\nB,\n')
    assert list(packaged_readers.news_passages(tmp_path)) == [{"text": "One, two\nthree"}]


def test_sentences_come_in_the_order_of_documents(tmp_path: Path) -> None:
    for number in (10, 2):
        (tmp_path / f"doc-{number}.json").write_text(json.dumps([f"text {number}", " "]))
    assert list(packaged_readers.nlp_corpus_sentences(tmp_path)) == [
        {"text": "text 2"},
        {"text": "text 10"},
    ]


def test_stsb_train_has_only_its_split(tmp_path: Path) -> None:
    line = 'g\tfile\t2012\t1\t{}\tA "man.\tA person.\textra\n'
    for split in packaged_readers.STSB_SPLITS:
        (tmp_path / f"sts-{split}.csv").write_text(line.format(split) + line.format("3.9"))
    pair = {"anchor": 'A "man.', "positive": "A person."}
    expected = [pair | {"score": score} for score in ("train", "3.9")]
    assert list(packaged_readers.stsb_train(tmp_path)) == expected
    assert [row["split"] for row in packaged_readers.stsb(tmp_path)][::2] == [
        "train",
        "dev",
        "test",
    ]


def test_jeopardy_keeps_the_text_of_links(tmp_path: Path) -> None:
    rows = [{"Question": 'Seen <a href="x">here</a> &amp; there', "Answer": "owl"}]
    (tmp_path / "jeopardy_10k.json").write_text(json.dumps(rows))
    (row,) = packaged_readers.jeopardy_pairs(tmp_path)
    assert row == {"anchor": "Seen here & there", "positive": "owl"}


def test_labelled_sets(tmp_path: Path) -> None:
    header = "Category\tText\nd\tstring\nclass\t\n"
    for name in ("20newsgroups-test", "reuters-r8-train", "reuters-r8-test"):
        (tmp_path / f"{name}.tab").write_text(f"{header}sport\ta goal\n")
    assert list(packaged_readers.newsgroups(tmp_path)) == [{"text": "a goal", "label": "sport"}]
    assert [row["split"] for row in packaged_readers.r8(tmp_path)] == ["train", "test"]

    (tmp_path / "question_labels.txt").write_bytes(
        "HUM:ind Who is Zo\u00eb ?\nHUM:ind Who is Zo\u00eb ? \n".encode("latin-1")
    )
    assert list(packaged_readers.trec(tmp_path)) == [{"text": "Who is Zo\u00eb ?", "label": "HUM"}]

    squad = {"paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "q"}]}]}
    (tmp_path / "squaddev_v1.1.json").write_text(json.dumps({"data": [squad]}))
    assert list(packaged_readers.squad_dev(tmp_path)) == [
        {"id": "1", "question": "q", "context": "c"}
    ]

    policy = {"context": "We share.", "question": "Shared?", "answer": "True"}
    (tmp_path / "test.jsonl").write_text(json.dumps(policy))
    (row,) = packaged_readers.privacy_policy(tmp_path)
    assert row == {"question": "Shared?", "context": "We share.", "label": "True"}
