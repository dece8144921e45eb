"""Sentence embeddings of real encoders by sentence-transformers: the golden of Tarn's embedding tests.

    python embeddings.py ALL_MINILM_L6_V2_FOLDER E5_SMALL_FOLDER GRANITE_30M_FOLDER > embeddings.json

(sentence-transformers 6.2.0, transformers 5.24.0, torch 2.15.0; CPU, f32, eager attention)

Ten texts; every one is encoded alone, so that no padding takes part. all-MiniLM-L6-v2: no prefix, mean pooling, at
most 256 tokens (its sentence_bert_config.json; the 128 in its tokenizer.json do not count). e5-small: "query: " and
"passage: " in turn, both for the first two texts, mean pooling, at most 512. granite-30m: no prefix, CLS pooling, at
most 512. All of them end with L2 normalisation. "tokens" counts the specials and is the count after truncation. A
text is tokenised as it stands: leading and trailing blanks are not stripped (older releases of sentence-transformers
stripped them).
"""

import json
import sys

import torch
from sentence_transformers import SentenceTransformer

LONG = (
    "Before the winter the operator inspects every pumping station along the shore of the lake. The inspection begins "
    "at the transformer, where the oil level, the temperature of the windings and the state of the bushings are "
    "written down. Then the switchgear is opened: contacts are cleaned, springs are greased, and the tripping time of "
    "each circuit breaker is measured with a test set. Residual current devices are pressed once and measured once. "
    "The motors are turned by hand, so that a seized bearing is found before the mains find it. In the control "
    "cabinet the technician compares the article numbers of the fitted relays with the catalogue, because a "
    "replacement from another maker may have the same shape and a different coil voltage. At the end the results "
    "go into the log book: date, name, measured value, limit, decision. A station that fails is not switched on "
    "again; it is marked, reported and repaired, and the whole inspection is then done a second time from the start."
)
TEXTS = [
    "voltage",
    "How do I choose a miniature circuit breaker?",
    "Der Überspannungsschutz gehört in die Hauptverteilung, größere Querschnitte führen höhere Ströme.",
    "5SL6116-7, C16 A, 1P+N, 6 kA, 230/400 V~, EAN 4001869425423",
    "ok",
    " ?",
    LONG,
    LONG + " " + LONG + " " + LONG,
    "The ice on the lake is thickest in the shallow bay behind the reeds.",
    "Café-Steckdose \u2014 IP44, RAL 9010 (reinweiß) \u2264 2,5 mm\u00b2; 100 % halogenfrei \u2713",
]


def encode(folder, rows):
    model = SentenceTransformer(folder, device="cpu", model_kwargs={"attn_implementation": "eager",
                                                                    "dtype": torch.float32})
    out = []
    for text, prefix in rows:
        whole = prefix + TEXTS[text]
        tokens = int(model.preprocess([whole])["attention_mask"].sum())
        vector = model.encode([whole], prompt="", convert_to_numpy=True)[0]
        out.append({"text": text, "prefix": prefix, "tokens": tokens, "vector": [round(float(x), 6) for x in vector]})
    return {"max_seq_length": model.max_seq_length, "modules": [type(module).__name__ for module in model],
            "rows": out}


def main():
    torch.set_num_threads(2)
    plain = [(at, "") for at in range(len(TEXTS))]
    e5 = [(at, ("query: ", "passage: ")[at % 2]) for at in range(len(TEXTS))] + [(0, "passage: "), (1, "query: ")]
    json.dump({"generator": "embeddings.py", "texts": TEXTS, "all-MiniLM-L6-v2": encode(sys.argv[1], plain),
               "e5-small": encode(sys.argv[2], e5), "granite-30m": encode(sys.argv[3], plain)}, sys.stdout,
              separators=(",", ":"), ensure_ascii=False)


if __name__ == "__main__":
    main()
