//! `tarn models inspect`.

use std::path::Path;

use crate::model::{ModelSource, ModelSummary};

/// Prints what the model at `path` is: a line a property, or one JSON object.
pub(super) fn print(path: &Path, json: bool) -> anyhow::Result<()> {
    let summary = ModelSource::open(path)?.inspect()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print!("{}", table(&summary));
    }
    Ok(())
}

fn table(summary: &ModelSummary) -> String {
    let dtypes: Vec<String> =
        summary.dtypes.iter().map(|(dtype, tensors)| format!("{dtype} ({tensors})")).collect();
    let rows = [
        ("path", summary.path.display().to_string()),
        ("architecture", summary.architecture.clone()),
        ("role", summary.role.to_owned()),
        ("parameters", indicatif::HumanCount(summary.parameters).to_string()),
        ("weights", indicatif::HumanBytes(summary.bytes).to_string()),
        ("tensors", dtypes.join(", ")),
        ("context", format!("{} tokens", summary.context)),
        ("vocabulary", format!("{} tokens", summary.vocab)),
        ("chat template", if summary.chat_template { "yes" } else { "no" }.to_owned()),
    ];
    rows.iter().map(|(name, value)| format!("{name:<14} {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_table_of_its_properties() {
        let summary = ModelSummary {
            path: "m.gguf".into(),
            architecture: "llama".to_owned(),
            role: "generates",
            parameters: 134_515_008,
            bytes: 3 << 20,
            dtypes: [("F32".to_owned(), 61), ("Q8_0".to_owned(), 211)].into(),
            context: 8192,
            vocab: 49152,
            chat_template: true,
        };
        let table = table(&summary);
        for line in [
            "architecture   llama",
            "parameters     134,515,008",
            "weights        3.00 MiB",
            "tensors        F32 (61), Q8_0 (211)",
            "chat template  yes",
        ] {
            assert!(table.lines().any(|found| found == line), "{line} in\n{table}");
        }
        assert!(print(Path::new("/nowhere"), false).is_err());
    }
}
