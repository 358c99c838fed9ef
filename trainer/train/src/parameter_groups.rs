//! Which parameters learn, how fast, and with how much decay: groups by component, by blocks, or by patterns over names.

use std::collections::BTreeMap;

use crate::error::TrainError;
use crate::groups::{Component, TrainType, block_of};
use crate::recipe::{RawGroup, refuse};

/// The parameter groups of a recipe. A parameter belongs to the group whose pattern it matches, or else to the group of
/// its component; a group of rate 0 is frozen, and so is what belongs to none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParameterGroups {
    train_type: TrainType,
    groups: Vec<ParameterGroup>,
}

/// Parameters that share a learning rate and a weight decay.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParameterGroup {
    pub(crate) name: String,
    members: Members,
    /// Peak learning rate.
    pub(crate) lr: f64,
    /// Of tensors with two or more axes.
    pub(crate) weight_decay: f64,
}

#[derive(Clone, Debug, PartialEq)]
enum Members {
    /// What no pattern takes of a component; of a language model, only these blocks, if they are given.
    Component(Component, Option<Vec<i64>>),
    /// Names that match one of these.
    Patterns(Vec<String>),
}

impl ParameterGroups {
    /// Checks the groups of a recipe as far as it can be done without a model.
    pub(crate) fn check(
        train_type: TrainType,
        raw: &BTreeMap<String, RawGroup>,
        weight_decay: f64,
    ) -> Result<Self, TrainError> {
        let groups: Vec<ParameterGroup> = raw
            .iter()
            .map(|(name, group)| ParameterGroup::check(name, group, weight_decay))
            .collect::<Result<_, _>>()?;
        let checked = Self { train_type, groups };
        checked.check_components()?;
        match checked.groups.iter().any(|group| group.lr > 0.0) {
            true => Ok(checked),
            false => refuse("groups", "at least one learning rate above 0", "everything frozen"),
        }
    }

    /// Each component that learns needs a rate, and none that is frozen may have one.
    fn check_components(&self) -> Result<(), TrainError> {
        let has_patterns = self.groups.iter().any(|group| matches!(group.members, Members::Patterns(_)));
        for component in Component::ALL {
            let key = format!("groups.{}.lr", component.as_str());
            let group = self.groups.iter().find(|group| group.component() == Some(component));
            match (group, self.train_type.trains(component)) {
                (None, true) if !has_patterns => {
                    let train_type = self.train_type;
                    let expected = format!("a learning rate, since `train_type` is `{train_type}` (0 freezes it)");
                    return refuse(&key, &expected, "nothing");
                }
                (Some(group), false) if group.lr > 0.0 => {
                    return refuse(&key, &format!("0, since `train_type` `{}` freezes it", self.train_type), group.lr);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses groups that do not fit the parameters called `names` of a language model of `num_blocks` blocks: a
    /// pattern or block that is not there, a parameter of two groups or, where its component learns, of none.
    pub(crate) fn check_names<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
        num_blocks: usize,
    ) -> Result<(), TrainError> {
        let names: Vec<&str> = names.collect();
        self.groups.iter().try_for_each(|group| group.check_members(&names, num_blocks))?;
        names.iter().try_for_each(|name| self.check_name(name))
    }

    fn check_name(&self, name: &str) -> Result<(), TrainError> {
        let trains = Component::of(name).is_some_and(|component| self.train_type.trains(component));
        let mut matching = self.groups.iter().filter(|group| group.has_pattern_for(name));
        let (first, second) = (matching.next(), matching.next());
        match (first, second) {
            (Some(first), Some(second)) => {
                let key = format!("groups.{}.match", first.name);
                refuse(&key, &format!("to share no parameter with `groups.{}`", second.name), name)
            }
            (Some(first), None) if first.lr > 0.0 && !trains => {
                let expected = format!("no parameter that `train_type` `{}` freezes", self.train_type);
                refuse(&format!("groups.{}.match", first.name), &expected, name)
            }
            (None, _) if trains && !self.groups.iter().any(|group| group.component() == Component::of(name)) => {
                refuse("groups", &format!("a group for every parameter that `{}` trains", self.train_type), name)
            }
            _ => Ok(()),
        }
    }

    /// The number of the group that trains the parameter called `name`, of a language model of `num_blocks` blocks.
    pub(crate) fn of(&self, name: &str, num_blocks: usize) -> Option<usize> {
        let by_pattern = self.groups.iter().position(|group| group.has_pattern_for(name));
        let by_component = || self.groups.iter().position(|group| group.has_component_of(name, num_blocks));
        by_pattern.or_else(by_component).filter(|&index| self.groups[index].lr > 0.0)
    }

    /// The group of that number.
    pub(crate) fn get(&self, index: usize) -> &ParameterGroup {
        &self.groups[index]
    }

    /// Name and peak rate of each group that learns, by name.
    pub(crate) fn rates(&self) -> impl Iterator<Item = (&str, f64)> {
        self.groups.iter().filter(|group| group.lr > 0.0).map(|group| (group.name.as_str(), group.lr))
    }

    /// Groups of one rate for a component each: for tests of what takes groups.
    #[cfg(test)]
    pub(crate) fn for_test(rates: &[(Component, f64)], weight_decay: f64) -> Self {
        let group = |&(component, lr): &(Component, f64)| ParameterGroup {
            name: component.as_str().to_owned(),
            members: Members::Component(component, None),
            lr,
            weight_decay,
        };
        Self { train_type: TrainType::Full, groups: rates.iter().map(group).collect() }
    }
}

impl ParameterGroup {
    fn check(name: &str, raw: &RawGroup, weight_decay: f64) -> Result<Self, TrainError> {
        let key = |field: &str| format!("groups.{name}.{field}");
        let weight_decay = raw.weight_decay.unwrap_or(weight_decay);
        if !raw.lr.is_finite() || raw.lr < 0.0 {
            return refuse(&key("lr"), "a number from 0 up", raw.lr);
        }
        if !weight_decay.is_finite() || weight_decay < 0.0 {
            return refuse(&key("weight_decay"), "a number from 0 up", weight_decay);
        }
        if raw.layers.as_ref().is_some_and(Vec::is_empty) {
            return refuse(&key("layers"), "at least one block, or no such key for all of them", "none");
        }
        let members = match (Component::named(name), raw.patterns.is_empty()) {
            (Some(Component::LanguageModel), true) => Members::Component(Component::LanguageModel, raw.layers.clone()),
            _ if raw.layers.is_some() => {
                return refuse(&key("layers"), "nothing: only `groups.language_model` has blocks", "some");
            }
            (Some(component), true) => Members::Component(component, None),
            (None, false) => Members::Patterns(raw.patterns.clone()),
            (Some(_), false) => {
                return refuse(&key("match"), "nothing: this name means the whole component", "patterns");
            }
            (None, true) => {
                let names = Component::ALL.map(|component| format!("`{}`", component.as_str())).join(", ");
                return refuse(&key("match"), &format!("patterns, since the name is none of {names}"), "none");
            }
        };
        Ok(Self { name: name.to_owned(), members, lr: raw.lr, weight_decay })
    }

    fn check_members(&self, names: &[&str], num_blocks: usize) -> Result<(), TrainError> {
        let unused = |pattern: &&String| !names.iter().any(|name| matches(pattern, name));
        match &self.members {
            Members::Patterns(patterns) => match patterns.iter().find(unused) {
                Some(pattern) => {
                    refuse(&format!("groups.{}.match", self.name), "patterns that match a parameter each", pattern)
                }
                None => Ok(()),
            },
            Members::Component(_, layers) => {
                match layers.iter().flatten().find(|&&layer| resolve(layer, num_blocks).is_none()) {
                    Some(layer) => {
                        let expected = format!("blocks from -{num_blocks} to {}", num_blocks - 1);
                        refuse(&format!("groups.{}.layers", self.name), &expected, layer)
                    }
                    None => Ok(()),
                }
            }
        }
    }

    /// The component of which this group takes what no pattern does.
    fn component(&self) -> Option<Component> {
        match self.members {
            Members::Component(component, _) => Some(component),
            Members::Patterns(_) => None,
        }
    }

    fn has_pattern_for(&self, name: &str) -> bool {
        match &self.members {
            Members::Patterns(patterns) => patterns.iter().any(|pattern| matches(pattern, name)),
            Members::Component(..) => false,
        }
    }

    fn has_component_of(&self, name: &str, num_blocks: usize) -> bool {
        match &self.members {
            Members::Component(component, layers) if Component::of(name) == Some(*component) => {
                let has =
                    |layers: &Vec<i64>, block| layers.iter().any(|&layer| resolve(layer, num_blocks) == Some(block));
                layers.as_ref().is_none_or(|layers| block_of(name).is_some_and(|block| has(layers, block)))
            }
            _ => false,
        }
    }
}

/// Counts a negative number of a block from the end.
fn resolve(layer: i64, num_blocks: usize) -> Option<usize> {
    let from_start = if layer < 0 { layer + num_blocks as i64 } else { layer };
    usize::try_from(from_start).ok().filter(|&block| block < num_blocks)
}

/// Whether all of `name` matches `pattern`, in which `*` stands for any text, dots included, and `?` for one sign.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut place) = (0, 0);
    // Where the last `*` stands, and how much of the name it takes so far.
    let mut star: Option<(usize, usize)> = None;
    while place < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, place));
                at += 1;
            }
            Some(&sign) if sign == b'?' || sign == name[place] => {
                at += 1;
                place += 1;
            }
            _ => match star.as_mut() {
                Some((start, taken)) => {
                    *taken += 1;
                    (at, place) = (*start + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&sign| sign == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 7] = [
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.mlp.up_proj.weight",
        "language_model.model.layers.1.mlp.up_proj.weight",
        "language_model.model.layers.10.input_layernorm.weight",
        "language_model.model.norm.weight",
        "multi_modal_projector.linear_1.weight",
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
    ];
    const NUM_BLOCKS: usize = 11;

    fn groups(train_type: TrainType, text: &str) -> Result<ParameterGroups, TrainError> {
        let raw = toml::from_str(text).expect("groups of numbers and texts");
        let groups = ParameterGroups::check(train_type, &raw, 0.1)?;
        groups.check_names(NAMES.into_iter(), NUM_BLOCKS).map(|()| groups)
    }

    fn refusal(train_type: TrainType, text: &str) -> String {
        groups(train_type, text).expect_err("refused").to_string()
    }

    /// The group of each name.
    fn chosen(groups: &ParameterGroups) -> Vec<Option<&str>> {
        NAMES.iter().map(|name| groups.of(name, NUM_BLOCKS).map(|index| groups.get(index).name.as_str())).collect()
    }

    #[test]
    fn patterns_take_parameters_out_of_their_components() {
        let text = "projector.lr = 1e-3\nlanguage_model.lr = 1e-5\n\
                    [embeddings]\nlr = 1e-6\nweight_decay = 0.0\nmatch = ['*.embed_tokens.*']\n\
                    [norms]\nlr = 0\nmatch = ['*norm.weight']";
        let groups = groups(TrainType::FreezeVision, text).expect("right");
        let language = Some("language_model");
        assert_eq!(chosen(&groups), [Some("embeddings"), language, language, None, None, Some("projector"), None]);
        let decays: Vec<f64> = groups.groups.iter().map(|group| group.weight_decay).collect();
        assert_eq!(decays, [0.0, 0.1, 0.1, 0.1]);
        assert_eq!(
            groups.rates().map(|(name, _)| name).collect::<Vec<_>>(),
            ["embeddings", "language_model", "projector"]
        );
    }

    #[test]
    fn first_and_last_block_alone() {
        let text = "projector.lr = 1e-3\n[language_model]\nlr = 5e-6\nlayers = [0, -1]";
        let groups = groups(TrainType::FreezeVision, text).expect("right");
        let language = Some("language_model");
        assert_eq!(chosen(&groups), [None, language, None, language, None, Some("projector"), None]);
    }

    #[test]
    fn a_parameter_of_two_groups_or_of_none_is_refused_by_name() {
        let base = "projector.lr = 1e-3\nlanguage_model.lr = 1e-5\n";
        let told = refusal(
            TrainType::FreezeVision,
            &format!("{base}[a]\nlr = 1.0\nmatch = ['*.0.*']\n[b]\nlr = 1.0\nmatch = ['*mlp.up_proj.weight']"),
        );
        assert!(told.contains("`groups.b`") && told.contains(NAMES[1]), "{told}");
        let told = refusal(TrainType::FreezeVision, "projector.lr = 1e-3\n[a]\nlr = 1.0\nmatch = ['*.layers.1.mlp*']");
        assert!(told.contains("a group for every parameter") && told.contains(NAMES[0]), "{told}");
    }

    #[test]
    fn patterns_that_match_nothing_or_what_is_frozen_are_refused() {
        let with = |group: &str| {
            refusal(TrainType::FreezeVision, &format!("projector.lr = 1e-3\nlanguage_model.lr = 1e-5\n{group}"))
        };
        for (group, part) in [
            ("[a]\nlr = 1.0\nmatch = ['*.layers.12.*']", "*.layers.12.*"),
            ("[a]\nlr = 1.0\nmatch = ['vision_tower.*']", "freezes"),
            ("[a]\nlr = 1.0", "none of `projector`"),
            ("[vision_tower]\nlr = 0.0\nmatch = ['a']", "groups.vision_tower.match"),
            ("[vision_tower]\nlr = 0.0\nlayers = [0]", "groups.vision_tower.layers"),
            ("[a]\nlr = 1.0\nmatch = ['*']\nlayers = [0]", "groups.a.layers"),
            ("[a]\nlr = 1.0\nweight_decay = -0.1\nmatch = ['*']", "groups.a.weight_decay"),
        ] {
            let told = with(group);
            assert!(told.contains(part), "{group}: {told}");
        }
        let text = "projector.lr = 1e-3\n[language_model]\nlr = 5e-6\nlayers = []";
        assert!(refusal(TrainType::FreezeVision, text).contains("groups.language_model.layers"));
        let text = "projector.lr = 1e-3\n[language_model]\nlr = 5e-6\nlayers = [0, 11]";
        assert!(refusal(TrainType::FreezeVision, text).contains("blocks from -11 to 10"));
    }

    #[test]
    fn adapters_are_a_component_of_their_own() {
        let name = "language_model.model.layers.0.self_attn.q_proj.lora_A.weight";
        let raw = toml::from_str("projector.lr = 1e-4\nlora.lr = 3e-5").expect("two groups");
        let groups = ParameterGroups::check(TrainType::Lora, &raw, 0.0).expect("right");
        let of = |name: &str| groups.of(name, NUM_BLOCKS).map(|index| groups.get(index).lr);
        assert_eq!((of(name), of(NAMES[1]), of(NAMES[5])), (Some(3e-5), None, Some(1e-4)));
    }

    proptest! {
        #[test]
        fn a_pattern_matches_as_its_regular_expression_would(pattern in "[ab*?]{0,8}", name in "[ab.]{0,8}") {
            prop_assert_eq!(matches(&pattern, &name), by_definition(pattern.as_bytes(), name.as_bytes()));
        }
    }

    /// The definition, tried out sign by sign.
    fn by_definition(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, _) => name.is_empty(),
            (Some((b'*', rest)), _) => (0..=name.len()).any(|taken| by_definition(rest, &name[taken..])),
            (Some((sign, rest)), Some((first, name))) => (*sign == b'?' || sign == first) && by_definition(rest, name),
            (Some(_), None) => false,
        }
    }
}
