//! `adapter_model.safetensors`: which tensor updates which product.
//!
//! The file is read, not mapped: its owner may replace it while the server runs, and a mapped file that shrinks ends
//! the process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tarn_kernels::Factors;

use super::super::error::{ModelError, Result};
use super::super::weights::{Elements, floats};
use super::Extents;
use super::settings::{Settings, read_at_most};

/// Room for the header of an adapter's file.
const HEADER: u64 = 16 << 20;

/// A product that an adapter can update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Query,
    Key,
    Value,
    Output,
    Router,
    Gate,
    Up,
    Down,
    /// Gate and up with one A.
    GateUp,
}

/// A product of the base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    pub(super) layer: usize,
    pub(super) target: Target,
    /// 0 where there is one.
    pub(super) expert: usize,
}

/// A and the scaled B of a product.
pub(super) struct Pair<'a> {
    a: Elements<'a>,
    b: Vec<f32>,
    rank: usize,
}

impl Pair<'_> {
    pub(super) fn factors(&self) -> Factors<'_> {
        Factors { a: self.a.data(), b: &self.b, rank: self.rank }
    }
}

/// All updates of an adapter.
pub(super) struct Found<'a> {
    pairs: BTreeMap<Site, Pair<'a>>,
}

impl Found<'_> {
    pub(super) fn get(&self, site: Site) -> Option<Factors<'_>> {
        self.pairs.get(&site).map(Pair::factors)
    }

    /// The largest rank; one A for gate and up counts as two of half its rank.
    pub(super) fn rank(&self) -> usize {
        let one = |(site, pair): (&Site, &Pair<'_>)| match site.target {
            Target::GateUp => pair.rank.div_ceil(2),
            _ => pair.rank,
        };
        self.pairs.iter().map(one).max().unwrap_or(0)
    }
}

/// The bytes of an adapter's weights.
pub(super) struct AdapterFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// A module's two tensors.
#[derive(Default)]
struct Halves<'a> {
    a: Option<(String, TensorView<'a>)>,
    b: Option<(String, TensorView<'a>)>,
}

/// What a tensor's name says.
#[derive(Debug, PartialEq, Eq)]
struct Named<'n> {
    layer: usize,
    /// Inside the layer.
    module: &'n str,
    is_a: bool,
}

impl AdapterFile {
    /// Reads the weights in the folder `dir`, as long as they could be of an adapter of rank `max_rank`.
    pub(super) fn read(dir: &Path, extents: &Extents, max_rank: usize) -> Result<AdapterFile> {
        let path = dir.join("adapter_model.safetensors");
        let pickle = dir.join("adapter_model.bin");
        if !path.exists() && pickle.exists() {
            return Err(ModelError::Adapter {
                path: pickle,
                message: "a pickle file can run code when it is read: save the adapter as safetensors \
                          (save_pretrained(..., safe_serialization=True))"
                    .to_owned(),
            });
        }
        let otherwise = format!(
            "no adapter of rank {max_rank} for this model has as many; if its rank is larger, raise the largest rank \
             that the server makes room for"
        );
        let bytes = read_at_most(&path, most_bytes(extents, max_rank), &otherwise)?;
        Ok(AdapterFile { path, bytes })
    }

    fn refuse<T>(&self, message: String) -> Result<T> {
        Err(ModelError::Adapter { path: self.path.clone(), message })
    }

    /// Its tensors by what they update.
    pub(super) fn pairs(&self, settings: &Settings, extents: &Extents, max_rank: usize) -> Result<Found<'_>> {
        let file = match SafeTensors::deserialize(&self.bytes) {
            Ok(file) => file,
            Err(err) => return self.refuse(format!("damaged or truncated safetensors file ({err})")),
        };
        let mut modules: BTreeMap<(usize, String), Halves<'_>> = BTreeMap::new();
        for (name, view) in file.tensors() {
            let named = match parse(&name) {
                Ok(named) => named,
                Err(why) => return self.refuse(format!("tensor `{name}`: {why}")),
            };
            let halves = modules.entry((named.layer, named.module.to_owned())).or_default();
            let half = if named.is_a { &mut halves.a } else { &mut halves.b };
            if half.is_some() {
                return self.refuse(format!("tensor `{name}` is there twice, under another name"));
            }
            *half = Some((name.clone(), view));
        }
        if modules.is_empty() {
            return self.refuse("it has no tensors".to_owned());
        }
        let mut found = Found { pairs: BTreeMap::new() };
        for ((layer, module), halves) in modules {
            let (a, b) = match (halves.a, halves.b) {
                (Some(a), Some(b)) => (a, b),
                (Some((name, _)), None) | (None, Some((name, _))) => {
                    return self.refuse(format!("tensor `{name}` is alone: lora_A and lora_B come in pairs"));
                }
                (None, None) => continue,
            };
            if layer >= extents.layers {
                return self.refuse(format!(
                    "tensor `{}`: the base model has {} layers: it was trained for another model",
                    a.0, extents.layers
                ));
            }
            let place = match place(&module, extents, &a.1) {
                Ok(place) => place,
                Err(why) => return self.refuse(format!("tensor `{}`: {why}", a.0)),
            };
            let full = format!("model.layers.{layer}.{}", place.module);
            let most = if place.target == Target::GateUp { 2 * max_rank } else { max_rank };
            let rank = settings.rank(&full);
            if rank == 0 || rank > most {
                return self.refuse(format!(
                    "`{full}` has rank {rank}, and the server makes room for ranks from 1 to {most}: raise its \
                     largest rank"
                ));
            }
            for ((name, view), expected) in
                [(&a, [rank * place.parts, place.k]), (&b, [place.n, rank * place.parts])]
            {
                if view.shape() != expected {
                    return Err(ModelError::AdapterShape {
                        path: self.path.clone(),
                        name: name.clone(),
                        found: view.shape().to_vec(),
                        expected: expected.to_vec(),
                    });
                }
            }
            let scale = settings.scale(&full, rank) as f32;
            let b_values = values(&b.0, &b.1)?;
            for part in 0..place.parts {
                let site = Site { layer, target: place.target, expert: place.expert + part };
                let pair = Pair {
                    a: part_of_a(&a.0, &a.1, part, place.parts)?,
                    b: part_of_b(&b_values, part, place.parts, scale),
                    rank,
                };
                if found.pairs.insert(site, pair).is_some() {
                    return self.refuse(format!("tensor `{}` updates what another tensor updates too", a.0));
                }
            }
        }
        let shared = |site: &&Site| site.target == Target::GateUp;
        for site in found.pairs.keys().filter(shared) {
            let split = |target| found.pairs.contains_key(&Site { target, ..*site });
            if split(Target::Gate) || split(Target::Up) {
                return self.refuse(format!(
                    "layer {} has updates of gate_up_proj and of w1 or w3: one or the other",
                    site.layer
                ));
            }
        }
        Ok(found)
    }
}

/// The most bytes that the weights of an adapter of rank `max_rank` have.
fn most_bytes(extents: &Extents, max_rank: usize) -> u64 {
    let Extents { layers, hidden, inner, q, kv, experts } = *extents;
    let attention = 4 * hidden + 2 * q + 2 * kv + hidden + experts;
    // One A for gate and up may have twice the rank.
    let mlp = experts.max(1) * (2 * hidden + 4 * inner + inner + hidden);
    let floats = (layers as u64).saturating_mul((attention + mlp) as u64).saturating_mul(max_rank as u64);
    floats.saturating_mul(4).saturating_add(HEADER)
}

/// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` and its like.
fn parse(name: &str) -> std::result::Result<Named<'_>, String> {
    let says = |part: &str| name.split('.').any(|found| found == part);
    if says("embed_tokens") || says("lm_head") || name.contains("lora_embedding_") {
        return Err("adapters of the embedding and of the output head are not served: train it without \
                    embed_tokens and lm_head, or merge it into the model"
            .to_owned());
    }
    if name.contains("lora_magnitude_vector") {
        return Err("DoRA is not served: merge the adapter into the model".to_owned());
    }
    if says("modules_to_save") || name.ends_with(".bias") {
        return Err("biases and whole modules are not served: train it with bias=\"none\" and without \
                    modules_to_save, or merge it into the model"
            .to_owned());
    }
    let unknown = || {
        "Tarn does not know what it updates; it serves lora_A.weight and lora_B.weight of q_proj, k_proj, v_proj, \
         o_proj, gate_proj, up_proj, down_proj, w1, w2, w3 and the router"
            .to_owned()
    };
    let inside = name.strip_prefix("base_model.model.").unwrap_or(name);
    let inside = inside.strip_prefix("model.").unwrap_or(inside);
    let (layer, rest) =
        inside.strip_prefix("layers.").and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
    let layer = layer.parse().map_err(|_| unknown())?;
    let rest = rest.strip_suffix(".weight").ok_or_else(unknown)?;
    // Old files have the adapter's name between: `lora_A.default.weight`.
    let (module, factor) = match rest.rsplit_once('.') {
        Some((module, factor @ ("lora_A" | "lora_B"))) => (module, factor),
        Some((rest, _)) => rest.rsplit_once('.').ok_or_else(unknown)?,
        None => return Err(unknown()),
    };
    match factor {
        "lora_A" => Ok(Named { layer, module, is_a: true }),
        "lora_B" => Ok(Named { layer, module, is_a: false }),
        _ => Err(unknown()),
    }
}

/// Where a module's update belongs.
struct Place<'m> {
    target: Target,
    expert: usize,
    /// As PEFT's patterns name it.
    module: &'m str,
    /// Rows of B, columns of A.
    n: usize,
    k: usize,
    /// Experts in one pair of tensors.
    parts: usize,
}

fn place<'m>(
    module: &'m str,
    extents: &Extents,
    a: &TensorView<'_>,
) -> std::result::Result<Place<'m>, String> {
    let Extents { hidden, inner, q, kv, experts, .. } = *extents;
    let one = |target, expert, n, k| Ok(Place { target, expert, module, n, k, parts: 1 });
    match module {
        "self_attn.q_proj" => return one(Target::Query, 0, q, hidden),
        "self_attn.k_proj" => return one(Target::Key, 0, kv, hidden),
        "self_attn.v_proj" => return one(Target::Value, 0, kv, hidden),
        "self_attn.o_proj" => return one(Target::Output, 0, hidden, q),
        "mlp.gate_proj" if experts == 0 => return one(Target::Gate, 0, inner, hidden),
        "mlp.up_proj" if experts == 0 => return one(Target::Up, 0, inner, hidden),
        "mlp.down_proj" if experts == 0 => return one(Target::Down, 0, hidden, inner),
        "block_sparse_moe.gate" | "mlp.gate" if experts > 0 => {
            return one(Target::Router, 0, experts, hidden);
        }
        _ => {}
    }
    let moe = module.strip_prefix("block_sparse_moe.experts").or_else(|| module.strip_prefix("mlp.experts"));
    let Some(rest) = moe.filter(|_| experts > 0) else {
        return Err(format!("the base model has no product `{module}`: it was trained for another model"));
    };
    if rest.split('.').all(|part| part.is_empty() || part == "base_layer") {
        // transformers 5 has all experts in one parameter, and PEFT nests a wrapper in another where both have an
        // update; which is which follows from the width of the input.
        let k = a.shape().get(1).copied().unwrap_or(0);
        let gate_up = Place {
            target: Target::GateUp,
            expert: 0,
            module: "mlp.experts.gate_up_proj",
            n: 2 * inner,
            k: hidden,
            parts: experts,
        };
        let down =
            Place { target: Target::Down, module: "mlp.experts.down_proj", n: hidden, k: inner, ..gate_up };
        if hidden == inner {
            return Err(
                "the experts' two products have inputs of one width here, so that a fused update fits \
                        both: save it with the experts apart (w1, w2, w3)"
                    .to_owned(),
            );
        }
        return Ok(if k == inner { down } else { gate_up });
    }
    let (expert, part) = rest.trim_start_matches('.').split_once('.').unwrap_or((rest, ""));
    let expert = expert.parse::<usize>().ok().filter(|expert| *expert < experts);
    let Some(expert) = expert else {
        return Err(format!(
            "the base model has {experts} experts and no product `{module}`: it was trained for another model"
        ));
    };
    match part {
        "w1" => one(Target::Gate, expert, inner, hidden),
        "w3" => one(Target::Up, expert, inner, hidden),
        "w2" => one(Target::Down, expert, hidden, inner),
        _ => Err(format!("an expert has no product `{part}`: it has w1, w2 and w3")),
    }
}

/// A of one expert: its rows follow each other.
fn part_of_a<'a>(name: &str, view: &TensorView<'a>, part: usize, parts: usize) -> Result<Elements<'a>> {
    let bytes = view.data();
    let each = bytes.len() / parts;
    floats(name, &format!("{:?}", view.dtype()), &bytes[part * each..(part + 1) * each])
}

/// B of one expert, scaled: the experts' columns alternate.
fn part_of_b(values: &[f32], part: usize, parts: usize, scale: f32) -> Vec<f32> {
    values.iter().skip(part).step_by(parts).map(|value| value * scale).collect()
}

/// A tensor's values as f32.
fn values(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let elements = floats(name, &format!("{:?}", view.dtype()), view.data())?;
    let mut values = vec![0.0; view.shape().iter().product()];
    elements.data().row(0, &mut values);
    Ok(values)
}
