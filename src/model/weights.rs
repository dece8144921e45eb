//! Tensors by name from safetensors, GGUF or nowhere (dummy weights).

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use half::{bf16, f16};
use rayon::prelude::*;
use tarn_kernels::device::{Use, fill};
use tarn_kernels::{Exec, MappedFile, WeightData, WeightFormat, cast};

use super::error::{ModelError, Result};
use super::gguf::{GgufFile, GgufTensor, GgufType};
use super::hf_config::read_json;

/// The element type that float weights are brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DtypeChoice {
    /// As stored.
    Auto,
    /// 32-bit; quantised weights are dequantised.
    F32,
    /// bfloat16; quantised weights are dequantised.
    BF16,
    /// IEEE half; quantised weights are dequantised.
    F16,
    /// 8-bit floats with a scale a row in a decoder's layers, quantised weights as well; all else as stored.
    Fp8,
}

impl DtypeChoice {
    /// The format of matrices outside of a decoder's layers, `None` for that of the file.
    pub(super) fn target(self) -> Option<WeightFormat> {
        match self {
            DtypeChoice::Auto | DtypeChoice::Fp8 => None,
            DtypeChoice::F32 => Some(WeightFormat::F32),
            DtypeChoice::BF16 => Some(WeightFormat::BF16),
            DtypeChoice::F16 => Some(WeightFormat::F16),
        }
    }

    /// The format of the projections of a decoder's layers: attention's and the experts', not the router.
    pub(super) fn projections(self) -> Option<WeightFormat> {
        if self == DtypeChoice::Fp8 { Some(WeightFormat::Fp8) } else { self.target() }
    }
}

/// How far loading is.
#[derive(Debug, Clone, Copy)]
pub struct LoadProgress {
    /// Layers loaded.
    pub layers: usize,
    /// Layers of the model.
    pub of: usize,
}

/// How a model is loaded.
pub struct LoadOptions {
    /// Element type of float weights.
    pub dtype: DtypeChoice,
    /// Most tokens of one forward pass; activations are sized for it.
    pub max_num_batched_tokens: usize,
    /// Most rows of logits (sequences) of one forward pass.
    pub max_num_seqs: usize,
    /// Random weights of the right shapes instead of the files'.
    pub dummy_weights: bool,
    /// How ops run.
    pub exec: Exec,
    /// Called after each layer.
    pub progress: Option<Box<dyn Fn(LoadProgress) + Send>>,
}

impl std::fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoadOptions({:?}, {} tokens, {:?})", self.dtype, self.max_num_batched_tokens, self.exec)
    }
}

/// A tensor's elements, borrowed from a mapped file where possible.
pub(super) enum Elements<'a> {
    Borrowed(WeightData<'a>),
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    Blocks(tarn_kernels::blocks::BlockFormat, Vec<u8>),
    Dummy(DummyTensor),
}

/// A tensor of random values that follow from its name, even in ±[`DummyTensor::BOUND`]: those of [`fill`], so that a device
/// fills it where it is needed and a CPU has the same. The host's values are made when somebody first reads them.
pub(super) struct DummyTensor {
    pub(super) seed: u64,
    pub(super) len: usize,
    values: OnceLock<Vec<bf16>>,
}

impl DummyTensor {
    /// Largest magnitude: a row of a few thousand such weights keeps a normalised input's size, about.
    pub(super) const BOUND: f32 = 0.05;

    fn new(name: &str, shape: &[usize]) -> DummyTensor {
        let seed = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        DummyTensor { seed, len: shape.iter().product(), values: OnceLock::new() }
    }

    fn values(&self) -> &[bf16] {
        let value = |at| bf16::from_f32(fill::value(at, self.seed) * DummyTensor::BOUND);
        self.values.get_or_init(|| (0..self.len as u64).into_par_iter().map(value).collect())
    }
}

impl Elements<'_> {
    pub(super) fn data(&self) -> WeightData<'_> {
        match self {
            Elements::Borrowed(data) => *data,
            Elements::F32(data) => WeightData::F32(data),
            Elements::F16(data) => WeightData::F16(data),
            Elements::BF16(data) => WeightData::BF16(data),
            Elements::Blocks(format, data) => WeightData::Blocks(*format, data),
            Elements::Dummy(tensor) => WeightData::BF16(tensor.values()),
        }
    }

    /// How many whole rows of `k` weights it has, if they are whole.
    pub(super) fn rows(&self, k: usize) -> Option<usize> {
        match self {
            Elements::Dummy(tensor) => (k > 0 && tensor.len.is_multiple_of(k)).then(|| tensor.len / k),
            stored => stored.data().rows(k),
        }
    }
}

/// All tensors of a model.
pub(super) enum Tensors<'a> {
    Safetensors(SafetensorFiles),
    Gguf(&'a GgufFile),
    Dummy,
}

impl Tensors<'_> {
    pub(super) fn is_gguf(&self) -> bool {
        matches!(self, Tensors::Gguf(_))
    }

    /// What weights on a device are to its kernels, of which one fills dummies.
    pub(super) fn r#use(&self) -> Use {
        if matches!(self, Tensors::Dummy) { Use::ReadWrite } else { Use::Read }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Tensors::Safetensors(files) => files.tensors.contains_key(name),
            Tensors::Gguf(file) => file.tensors.contains_key(name),
            Tensors::Dummy => true,
        }
    }

    /// Tensor `name`, which must have `shape`.
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<Elements<'_>> {
        match self {
            Tensors::Safetensors(files) => files.get(name, shape),
            Tensors::Gguf(file) => {
                let tensor = gguf_tensor(file, name, shape)?;
                gguf_elements(name, tensor.kind, file.bytes(tensor))
            }
            Tensors::Dummy => Ok(Elements::Dummy(DummyTensor::new(name, shape))),
        }
    }

    /// Slice `at` of the outermost dimension of a merged tensor `[parts, shape..]`.
    pub(super) fn part(&self, name: &str, at: usize, parts: usize, shape: &[usize]) -> Result<Elements<'_>> {
        let Tensors::Gguf(file) = self else { return self.get(name, shape) };
        let whole: Vec<usize> = std::iter::once(parts).chain(shape.iter().copied()).collect();
        let tensor = gguf_tensor(file, name, &whole)?;
        let bytes = file.bytes(tensor);
        let each = bytes.len() / parts.max(1);
        gguf_elements(name, tensor.kind, &bytes[at * each..(at + 1) * each])
    }

    /// A vector as f32.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        if matches!(self, Tensors::Dummy) {
            let is_scale = name.ends_with("norm.weight") || name.ends_with("LayerNorm.weight");
            return Ok(vec![if is_scale { 1.0 } else { 0.0 }; len]);
        }
        let elements = self.get(name, &[len])?;
        let mut out = vec![0.0; len];
        if len > 0 {
            elements.data().row(0, &mut out);
        }
        Ok(out)
    }

    /// The path for messages.
    fn path(&self) -> PathBuf {
        match self {
            Tensors::Safetensors(files) => files.dir.clone(),
            Tensors::Gguf(file) => file.path.clone(),
            Tensors::Dummy => PathBuf::new(),
        }
    }

    /// The first of `names` that exists.
    pub(super) fn first<'n>(&self, names: &[&'n str]) -> Result<&'n str> {
        names.iter().find(|name| self.has(name)).copied().ok_or_else(|| ModelError::MissingTensor {
            name: names.first().copied().unwrap_or_default().to_owned(),
            path: self.path(),
        })
    }
}

fn gguf_tensor<'f>(file: &'f GgufFile, name: &str, shape: &[usize]) -> Result<&'f GgufTensor> {
    let tensor = file
        .tensors
        .get(name)
        .ok_or_else(|| ModelError::MissingTensor { name: name.to_owned(), path: file.path.clone() })?;
    same_shape(name, &tensor.shape, shape)?;
    Ok(tensor)
}

fn same_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(ModelError::TensorShape { name: name.to_owned(), found: found.to_vec(), expected: expected.to_vec() })
}

fn gguf_elements<'b>(name: &str, kind: GgufType, bytes: &'b [u8]) -> Result<Elements<'b>> {
    Ok(match kind {
        GgufType::F32 => floats(name, "F32", bytes)?,
        GgufType::F16 => floats(name, "F16", bytes)?,
        GgufType::BF16 => floats(name, "BF16", bytes)?,
        GgufType::Blocks(format) => Elements::Borrowed(WeightData::Blocks(format, bytes)),
    })
}

/// Floats by the name of their type; copied only where the file did not align them.
pub(super) fn floats<'b>(name: &str, dtype: &str, bytes: &'b [u8]) -> Result<Elements<'b>> {
    let halves = || bytes.as_chunks::<2>().0.iter().copied();
    Ok(match dtype {
        "F32" => cast(bytes).map_or_else(
            || Elements::F32(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            |data| Elements::Borrowed(WeightData::F32(data)),
        ),
        "F16" => cast(bytes).map_or_else(
            || Elements::F16(halves().map(f16::from_le_bytes).collect()),
            |data| Elements::Borrowed(WeightData::F16(data)),
        ),
        "BF16" => cast(bytes).map_or_else(
            || Elements::BF16(halves().map(bf16::from_le_bytes).collect()),
            |data| Elements::Borrowed(WeightData::BF16(data)),
        ),
        other => {
            return Err(ModelError::TensorType {
                name: name.to_owned(),
                found: other.to_owned(),
                expected: "F32, F16 and BF16",
            });
        }
    })
}

/// The safetensors files of a folder.
#[derive(Debug)]
pub(super) struct SafetensorFiles {
    dir: PathBuf,
    maps: Vec<MappedFile>,
    tensors: HashMap<String, Located>,
}

#[derive(Debug)]
struct Located {
    file: usize,
    dtype: String,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl SafetensorFiles {
    pub(super) fn open(dir: &Path) -> Result<SafetensorFiles> {
        let mut files = SafetensorFiles { dir: dir.to_owned(), maps: Vec::new(), tensors: HashMap::new() };
        for path in weight_files(dir)? {
            files.add(&path)?;
        }
        Ok(files)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let map =
            MappedFile::open(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        let refuse = |message: String| ModelError::Json { path: path.to_owned(), message };
        let parsed = safetensors::SafeTensors::read_metadata(map.bytes())
            .map_err(|err| refuse(format!("damaged or truncated safetensors header ({err})")))?;
        let start = parsed.0 + 8;
        for (name, info) in parsed.1.tensors() {
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            if range.end > map.bytes().len() {
                return Err(refuse(format!("tensor `{name}` reaches past the end: the file is truncated")));
            }
            let located = Located {
                file: self.maps.len(),
                dtype: format!("{:?}", info.dtype),
                shape: info.shape.clone(),
                range,
            };
            self.tensors.insert(name, located);
        }
        self.maps.push(map);
        Ok(())
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Elements<'_>> {
        // Encoders are saved with and without the name of the whole model in front.
        let located = ["", "bert.", "roberta."]
            .iter()
            .find_map(|prefix| self.tensors.get(&format!("{prefix}{name}")))
            .ok_or_else(|| ModelError::MissingTensor { name: name.to_owned(), path: self.dir.clone() })?;
        same_shape(name, &located.shape, shape)?;
        floats(name, &located.dtype, &self.maps[located.file].bytes()[located.range.clone()])
    }

    /// Calls `visit(name, type, shape, bytes)` for every tensor.
    pub(super) fn each(&self, mut visit: impl FnMut(&str, &str, &[usize], usize)) {
        for (name, located) in &self.tensors {
            visit(name, &located.dtype, &located.shape, located.range.len());
        }
    }
}

/// The shards that the index names, or the one file.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let index = dir.join("model.safetensors.index.json");
    if !index.is_file() {
        let single = dir.join("model.safetensors");
        if single.is_file() {
            return Ok(vec![single]);
        }
        return Err(ModelError::NotAModel {
            path: dir.to_owned(),
            found: "it has neither model.safetensors nor model.safetensors.index.json".to_owned(),
        });
    }
    let json = read_json(&index)?;
    let map = json.get("weight_map").and_then(serde_json::Value::as_object).ok_or_else(|| {
        ModelError::Json { path: index.clone(), message: "it has no `weight_map`".to_owned() }
    })?;
    let mut names: Vec<&str> = map.values().filter_map(serde_json::Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .map(|name| {
            let path = dir.join(name);
            if name.contains("..") || Path::new(name).is_absolute() || !path.is_file() {
                return Err(ModelError::Json {
                    path: index.clone(),
                    message: format!(
                        "it names the shard `{name}`, which is not there: the download may be incomplete"
                    ),
                });
            }
            Ok(path)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};
    use tarn_kernels::blocks::{BlockFormat, dequantize};

    #[test]
    fn every_block_format_means_what_candle_says() {
        let values: Vec<f32> = (0..4096_u32)
            .map(|at| {
                let z = at.wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b);
                // Off centre, so that formats with a minimum need it.
                (z >> 8) as f32 / (1 << 24) as f32 * 3.0 - 1.0
            })
            .collect();
        for (format, dtype) in [
            (BlockFormat::Q4_0, GgmlDType::Q4_0),
            (BlockFormat::Q4_1, GgmlDType::Q4_1),
            (BlockFormat::Q8_0, GgmlDType::Q8_0),
            (BlockFormat::Q4K, GgmlDType::Q4K),
            (BlockFormat::Q6K, GgmlDType::Q6K),
        ] {
            let tensor = Tensor::new(&values[..], &Device::Cpu).expect("tensor");
            let quantized = QTensor::quantize(&tensor, dtype).expect("quantises");
            let bytes = quantized.data().expect("bytes");
            assert_eq!(bytes.len(), format.row_bytes(values.len()).expect("whole blocks"), "{format:?}");
            let expected =
                quantized.dequantize(&Device::Cpu).and_then(|t| t.to_vec1::<f32>()).expect("floats");
            let mut found = vec![0.0; values.len()];
            dequantize(format, &bytes, &mut found);
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                // candle multiplies the scales in another order: the last bits differ.
                let error = (found - expected).abs();
                assert!(error <= 1e-6 * expected.abs().max(1.0), "{format:?} {at}: {found} {expected}");
            }
        }
    }
}
