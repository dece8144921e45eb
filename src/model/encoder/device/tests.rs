//! What the host does around a pass, over a device that computes nothing. What passes compute is compared over the
//! emulator, in `tests/device_encoder.rs`.

use std::sync::{Arc, Mutex};

use tarn_kernels::DType;
use tarn_kernels::device::{Copier, Device, Launch, Ptr, Reading, Use};

use super::super::super::config::ModelConfig;
use super::super::super::decoder::placed;
use super::super::super::source::ModelSource;
use super::{DeviceEncoder, DeviceEncoderOptions};

/// What was asked of a device.
#[derive(Debug, Default)]
struct Asked {
    /// As the driver would place them.
    bytes: usize,
    launches: usize,
    /// Launches of each list.
    recorded: Vec<usize>,
    replayed: Vec<usize>,
}

#[derive(Debug, Clone, Default)]
struct Listener(Arc<Mutex<Asked>>);

impl Listener {
    fn with<T>(&self, ask: impl FnOnce(&mut Asked) -> T) -> T {
        ask(&mut self.0.lock().expect("nobody panicked"))
    }
}

impl Device for Listener {
    fn alloc(&mut self, _: &str, bytes: usize, _: Use) -> tarn_kernels::Result<Ptr> {
        self.with(|asked| asked.bytes += placed(bytes));
        Ok(Ptr(256))
    }

    fn upload(&mut self, _: Ptr, _: usize, _: &[u8]) -> tarn_kernels::Result<()> {
        Ok(())
    }

    fn download(&mut self, _: Ptr, _: usize, bytes: &mut [u8]) -> tarn_kernels::Result<()> {
        bytes.fill(0);
        Ok(())
    }

    fn read(&mut self, _: Ptr, _: usize, bytes: usize) -> tarn_kernels::Result<Reading> {
        Reading::new(0, bytes)
    }

    fn finish(&mut self, reading: Reading) -> tarn_kernels::Result<Vec<u8>> {
        Ok(vec![0; reading.bytes])
    }

    fn launch(&mut self, _: &Launch) -> tarn_kernels::Result<()> {
        self.with(|asked| asked.launches += 1);
        Ok(())
    }

    fn record(&mut self, launches: Vec<Launch>) -> tarn_kernels::Result<usize> {
        self.with(|asked| asked.recorded.push(launches.len()));
        Ok(self.with(|asked| asked.recorded.len()) - 1)
    }

    fn replay(&mut self, list: usize) -> tarn_kernels::Result<()> {
        self.with(|asked| asked.replayed.push(list));
        Ok(())
    }

    fn synchronize(&mut self) -> tarn_kernels::Result<()> {
        Ok(())
    }

    fn copier(&self) -> tarn_kernels::Result<Box<dyn Copier>> {
        Err(tarn_kernels::KernelError::Device { what: "nobody copies here".to_owned() })
    }
}

/// A BERT of two layers and its options; `types` rows of types.
fn source(architecture: &str, types: usize) -> (tempfile::TempDir, ModelSource, DeviceEncoderOptions) {
    let dir = tempfile::tempdir().expect("dir");
    let config = serde_json::json!({
        "architectures": [architecture], "id2label": {"0": "LABEL_0"}, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 20_000, "max_position_embeddings": 100,
        "type_vocab_size": types, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 1,
    });
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("writes");
    let source = ModelSource::open(dir.path()).expect("opens");
    let options = DeviceEncoderOptions {
        dtype: DType::BF16,
        max_num_batched_tokens: 256,
        max_num_seqs: 32,
        dummy_weights: true,
        progress: None,
    };
    (dir, source, options)
}

#[test]
fn what_is_planned_is_what_loading_asks_for() {
    let mut all = Vec::new();
    for (architecture, types) in [
        ("BertModel", 2),
        ("BertModel", 0),
        ("BertForSequenceClassification", 2),
        ("XLMRobertaForSequenceClassification", 1),
    ] {
        let (_dir, source, options) = source(architecture, types);
        let ModelConfig::Encoder(config) = source.config() else { panic!("an encoder") };
        let planned = DeviceEncoder::footprint(config, &options).expect("plans");
        let device = Listener::default();
        DeviceEncoder::load(Box::new(device.clone()), &source, &options).expect("loads");
        assert_eq!(planned, device.with(|asked| asked.bytes), "{architecture}, {types} types");
        // Words, and activations of 256 tokens.
        assert!(planned > 20_000 * 64 * 2 + 256 * (6 * 64 + 96) * 2);
        all.push(planned);
    }
    // Types, then a head: of these sizes each takes a place of its own.
    assert!(all[1] < all[0] && all[0] < all[2], "{all:?}");
}

#[test]
fn a_query_is_recorded_once_for_all_of_about_its_length_and_other_passes_are_launched() {
    let (_dir, source, options) = source("BertForSequenceClassification", 2);
    let device = Listener::default();
    let mut encoder = DeviceEncoder::load(Box::new(device.clone()), &source, &options).expect("loads");
    // Dummy weights are made there.
    device.with(|asked| asked.launches = 0);
    let mut out = Vec::new();
    let mut embed = |lengths: &[u32]| {
        let mut bounds = vec![0];
        lengths.iter().for_each(|length| bounds.push(bounds[bounds.len() - 1] + length));
        encoder.forward(&vec![7; bounds[lengths.len()] as usize], &bounds, &mut out).expect("forward");
        assert_eq!(out.len(), lengths.len() * 64);
        encoder.last.as_ref().map(|(shape, list)| (*shape, list.len()))
    };
    for length in [1, 8, 3, 9, 16, 8] {
        assert_eq!(embed(&[length]), None, "queries leave the last list alone");
    }
    // Embeddings and their norm, eight a layer, the pool.
    let launches = 2 + 2 * 8 + 1;
    device.with(|asked| {
        assert_eq!(asked.recorded, [launches; 2]);
        assert_eq!(asked.replayed, [0, 0, 0, 1, 1, 0]);
        assert_eq!(asked.launches, 0);
    });
    let first = embed(&[65]).expect("it is kept");
    assert_eq!((embed(&[66]), first.1), (Some(first), launches), "66 tokens are rounded up to the same");
    assert_ne!(embed(&[3, 4]), Some(first), "two are no query, however short");
    assert_eq!(device.with(|asked| (asked.launches, asked.replayed.len())), (3 * launches, 6));
    // Scores of the same lengths are another list: first tokens and a product, and no pool.
    encoder.score(&[7; 5], &[], &[0, 5], &mut out).expect("score");
    assert_eq!(out, [0.0], "no product, and no bias of dummy weights");
    device.with(|asked| {
        assert_eq!((&asked.recorded[2..], asked.replayed.last()), (&[launches + 1][..], Some(&2)))
    });
}
