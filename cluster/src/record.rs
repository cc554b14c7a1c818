//! From the JSON of one document to records: nodes, with what is wrong with
//! each and where it stands.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::node::{Node, device_mac, node_ip, pod_range};
use crate::shape::{Json, Lenient, LenientList, scalars, skip_list};

/// The keys of a record, for messages.
pub(crate) const KEYS: &str = "name, addresses, podCIDRs, tunnelAddress, vtepMAC";

/// The key that an unknown one is most likely meant to be: one that differs in case,
/// in a plural, or in one slip of the hand.
pub(crate) fn meant(unknown: &str) -> Option<&'static str> {
    let plain = |key: &str| {
        key.to_ascii_lowercase().trim_end_matches("es").trim_end_matches('s').to_owned()
    };
    KEYS.split(", ").find(|key| *key != unknown && one_slip(&plain(key), &plain(unknown)))
}

/// Whether at most one letter is missing, too many or another, or two are swapped.
fn one_slip(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let start = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[start..], &b[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    match (&a[..a.len() - end], &b[..b.len() - end]) {
        ([x, y], [v, w]) => (x, y) == (w, v),
        (a, b) => a.len() <= 1 && b.len() <= 1,
    }
}

/// One record of a document.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// As much of the node as could be read.
    pub(crate) node: Node,
    /// The list that the record is in and its index there; `None` where it is
    /// the whole document.
    pub(crate) place: Option<(&'static str, usize)>,
    /// What is wrong with it; nothing, for a sound one.
    pub(crate) faults: Vec<String>,
    /// Not a record but what stands beside the list of them: keys that mean
    /// nothing there.
    pub(crate) stray: bool,
    /// Keys that mean nothing.
    pub(crate) unknown_keys: Vec<String>,
}

impl Record {
    /// What it is called in messages.
    pub(crate) fn item(&self) -> String {
        let place = self.place.map(|(list, index)| format!("{list}[{index}]"));
        match (self.node.name.as_str(), place) {
            ("", None) if self.stray => "beside the key nodes".to_owned(),
            ("", None) => "the record".to_owned(),
            ("", Some(place)) => place,
            (name, None) => format!("node {name:?}"),
            (name, Some(place)) => format!("node {name:?} ({place})"),
        }
    }

    /// Whether it has what it takes to route to it.
    pub(crate) fn is_complete(&self) -> bool {
        let reachable = self.node.tunnel_address.is_some() || !self.node.addresses.is_empty();
        reachable && !self.node.pod_ranges.is_empty()
    }
}

/// The records of a document, which is a node, a list of them, `{"nodes": …}`,
/// or a Kubernetes Node or list. An error means that it is none of these or not
/// JSON; faults of single records are in them.
pub(crate) fn parse<'de, D: Deserializer<'de>>(document: D) -> Result<Vec<Record>, D::Error> {
    document.deserialize_any(DocumentVisitor)
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Vec<Record>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a node or a list of nodes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Vec<Record>, A::Error> {
        read_list(items, "")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<Record>, A::Error> {
        let mut raw = Raw::default();
        raw.read(map, true)?;
        if let Some(mut records) = raw.list.take() {
            // A Kubernetes list has keys of its own, which are none of ours.
            if raw.list_key == "nodes" {
                records.extend(raw.stray_keys());
            }
            return Ok(records);
        }
        Ok(raw.into_record(None).into_iter().collect())
    }
}

/// The records of the list `list` of a document.
fn read_list<'de, A: SeqAccess<'de>>(
    mut items: A,
    list: &'static str,
) -> Result<Vec<Record>, A::Error> {
    let mut records = Vec::new();
    let mut index = 0;
    while let Some(record) = items.next_element_seed(ItemSeed { list, index })? {
        records.extend(record);
        index += 1;
    }
    Ok(records)
}

/// A list of records under a key, or `null`, as Go writes a list without items.
struct ListSeed(&'static str);

impl<'de> DeserializeSeed<'de> for ListSeed {
    type Value = Vec<Record>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Vec<Record>, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ListSeed {
    type Value = Vec<Record>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of nodes under the key {:?}", self.0)
    }

    fn visit_unit<E>(self) -> Result<Vec<Record>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Vec<Record>, A::Error> {
        read_list(items, self.0)
    }
}

/// One item of a list of records; `None` where it is a Kubernetes object of
/// another kind.
struct ItemSeed {
    list: &'static str,
    index: usize,
}

impl ItemSeed {
    fn not_an_object(self, what: &str) -> Option<Record> {
        Some(Record {
            place: Some((self.list, self.index)),
            faults: vec![format!("is {what}, where a record is an object with the keys {KEYS}")],
            ..Record::default()
        })
    }
}

impl<'de> DeserializeSeed<'de> for ItemSeed {
    type Value = Option<Record>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Option<Record>, D::Error> {
        value.deserialize_any(ItemVisitor(self))
    }
}

struct ItemVisitor(ItemSeed);

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Option<Record>;

    scalars!(|this: Self, what| this.0.not_an_object(what));

    fn visit_str<E>(self, _: &str) -> Result<Option<Record>, E> {
        Ok(self.0.not_an_object("a string"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Option<Record>, A::Error> {
        skip_list(items)?;
        Ok(self.0.not_an_object("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<Record>, A::Error> {
        let mut raw = Raw::default();
        raw.read(map, false)?;
        Ok(raw.into_record(Some((self.0.list, self.0.index))))
    }
}

/// The keys of one object, those of our own records and those of Kubernetes.
#[derive(Default)]
struct Raw<'a> {
    name: Json<'a>,
    addresses: Json<'a>,
    pod_cidrs: Json<'a>,
    tunnel_address: Json<'a>,
    vtep_mac: Json<'a>,
    quarantined: Json<'a>,
    kind: Json<'a>,
    metadata: Option<Lenient<Metadata<'a>>>,
    spec: Lenient<Spec<'a>>,
    status: Lenient<Status<'a>>,
    /// The list of records that the whole document is.
    list: Option<Vec<Record>>,
    list_key: &'static str,
    twice: Vec<&'static str>,
    unknown: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata<'a> {
    #[serde(borrow)]
    name: Json<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec<'a> {
    #[serde(borrow, rename = "podCIDRs")]
    pod_cidrs: Json<'a>,
    #[serde(borrow, rename = "podCIDR")]
    pod_cidr: Json<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status<'a> {
    #[serde(borrow)]
    addresses: LenientList<KubernetesAddress<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KubernetesAddress<'a> {
    #[serde(borrow, rename = "type")]
    kind: Json<'a>,
    #[serde(borrow)]
    address: Json<'a>,
}

impl<'a> Raw<'a> {
    /// Reads an object; at the top of a document it may hold the list of records.
    fn read<'de: 'a, A: MapAccess<'de>>(&mut self, mut map: A, top: bool) -> Result<(), A::Error> {
        while let Some(Key(key)) = map.next_key()? {
            match &*key {
                "name" => set("name", &mut self.name, &mut self.twice, map.next_value()?),
                "addresses" => {
                    set("addresses", &mut self.addresses, &mut self.twice, map.next_value()?);
                }
                "podCIDRs" => {
                    set("podCIDRs", &mut self.pod_cidrs, &mut self.twice, map.next_value()?);
                }
                "tunnelAddress" => {
                    let value = map.next_value()?;
                    set("tunnelAddress", &mut self.tunnel_address, &mut self.twice, value);
                }
                "vtepMAC" => set("vtepMAC", &mut self.vtep_mac, &mut self.twice, map.next_value()?),
                "quarantined" => self.quarantined = map.next_value()?,
                "kind" => self.kind = map.next_value()?,
                "metadata" => self.metadata = Some(map.next_value()?),
                "spec" => self.spec = map.next_value()?,
                "status" => self.status = map.next_value()?,
                "nodes" if top => self.add_list(map.next_value_seed(ListSeed("nodes"))?, "nodes"),
                "items" if top => self.add_list(map.next_value_seed(ListSeed("items"))?, "items"),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    self.unknown.push(key.into_owned());
                }
            }
        }
        Ok(())
    }

    fn add_list(&mut self, records: Vec<Record>, key: &'static str) {
        self.list_key = key;
        self.list.get_or_insert_default().extend(records);
    }

    /// A complaint about the keys beside `nodes`, where there are any.
    fn stray_keys(mut self) -> Option<Record> {
        let own = [
            ("name", &self.name),
            ("addresses", &self.addresses),
            ("podCIDRs", &self.pod_cidrs),
            ("tunnelAddress", &self.tunnel_address),
            ("vtepMAC", &self.vtep_mac),
        ];
        let given = own.iter().filter(|(_, value)| !value.is_null());
        let mut unknown_keys: Vec<_> = given.map(|(key, _)| (*key).to_owned()).collect();
        unknown_keys.append(&mut self.unknown);
        let found = !unknown_keys.is_empty();
        found.then(|| Record { stray: true, unknown_keys, ..Record::default() })
    }

    /// The record, of either sort; `None` for a Kubernetes object that is no Node.
    fn into_record(self, place: Option<(&'static str, usize)>) -> Option<Record> {
        let in_items = matches!(place, Some(("items", _)));
        let kubernetes = match &self.kind {
            Json::Text(kind) if kind == "Node" => true,
            Json::Text(_) if in_items => return None,
            _ => in_items || (self.name.is_null() && self.metadata.is_some()),
        };
        let mut record = Record { place, ..Record::default() };
        if kubernetes {
            self.fill_from_kubernetes(&mut record)
        } else {
            self.fill(&mut record)
        }
        record.check_own_ranges();
        Some(record)
    }

    fn fill(self, record: &mut Record) {
        record.unknown_keys = self.unknown;
        if let Json::Text(kind) = &self.kind {
            record.faults.push(format!("is a {kind}, not a Node"));
        }
        if let Json::Text(why) = &self.quarantined {
            record.faults.push(why.clone().into_owned());
        }
        for key in self.twice {
            record.faults.push(format!("has the key {key} twice"));
        }
        record.set_name(&self.name);
        record.node.addresses = record.parse_list("addresses", &self.addresses, str::parse);
        record.node.pod_ranges = record.parse_list("podCIDRs", &self.pod_cidrs, pod_range);
        record.node.tunnel_address =
            record.parse_one("tunnelAddress", &self.tunnel_address, node_ip);
        record.node.vtep_mac = record.parse_one("vtepMAC", &self.vtep_mac, device_mac);
    }

    fn fill_from_kubernetes(self, record: &mut Record) {
        record.set_name(&self.metadata.unwrap_or_default().0.name);
        let Spec { pod_cidrs, pod_cidr } = self.spec.0;
        let empty = match &pod_cidrs {
            Json::List(items) => items.is_empty(),
            other => other.is_null(),
        };
        record.node.pod_ranges = match pod_cidr {
            // An unset string is "" in Go.
            Json::Text(text) if empty && text.is_empty() => Vec::new(),
            Json::Text(_) if empty => {
                record.parse_list("podCIDR", &Json::List(vec![pod_cidr]), pod_range)
            }
            _ => record.parse_list("podCIDRs", &pod_cidrs, pod_range),
        };
        let internal = self.status.0.addresses.0.into_iter().map(|address| address.0);
        let internal =
            internal.filter(|a| matches!(&a.kind, Json::Text(kind) if kind == "InternalIP"));
        let internal = Json::List(internal.map(|address| address.address).collect());
        record.node.addresses = record.parse_list("InternalIP", &internal, str::parse);
    }
}

/// Sets a key that may be there only once; `null` is not there.
fn set<'a>(
    key: &'static str,
    field: &mut Json<'a>,
    twice: &mut Vec<&'static str>,
    value: Json<'a>,
) {
    if !field.is_null() && !value.is_null() {
        twice.push(key);
    }
    if !value.is_null() {
        *field = value;
    }
}

/// A key, borrowed from the document where it needs no unescaping.
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Cow<'de, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(key))
            }
            fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(key.to_owned()))
            }
        }
        deserializer.deserialize_str(KeyVisitor).map(Key)
    }
}

impl Record {
    /// Names go into lines of text that others run, so they are one printable
    /// word; 253 octets is the longest DNS name, which Kubernetes allows.
    fn set_name(&mut self, name: &Json) {
        let Json::Text(text) = name else {
            let what = if name.is_null() { "has no name".to_owned() } else { name.describe() };
            return self.faults.push(if name.is_null() {
                what
            } else {
                format!("name must be a string, not {what}")
            });
        };
        let word = text.chars().all(|c| !c.is_whitespace() && !c.is_control());
        if text.is_empty() {
            self.faults.push("has no name".to_owned());
        } else if !word || text.len() > 253 {
            self.faults.push(format!("name {text:?} is not one word of at most 253 characters"));
        } else {
            self.node.name = text.clone().into_owned();
        }
    }

    /// The items of the list under `key` that are right; what is wrong with the
    /// others goes to the faults.
    fn parse_list<T>(
        &mut self,
        key: &str,
        list: &Json,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let items = match list {
            Json::Null => return Vec::new(),
            Json::List(items) => items,
            other => {
                self.faults
                    .push(format!("{key} must be a list of strings, not {}", other.describe()));
                return Vec::new();
            }
        };
        let mut parsed = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let value = match item {
                Json::Text(text) => parse(text),
                other => Err(format!("must be a string, not {}", other.describe())),
            };
            match value {
                Ok(value) => parsed.push(value),
                Err(what) => self.faults.push(format!("{key}[{index}]: {what}")),
            }
        }
        parsed
    }

    fn parse_one<T>(
        &mut self,
        key: &str,
        value: &Json,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let parsed = match value {
            Json::Null => return None,
            Json::Text(text) if text.is_empty() => return None,
            Json::Text(text) => parse(text),
            other => Err(format!("must be a string, not {}", other.describe())),
        };
        parsed.map_err(|what| self.faults.push(format!("{key}: {what}"))).ok()
    }

    fn check_own_ranges(&mut self) {
        let mut ranges = self.node.pod_ranges.clone();
        ranges.sort_unstable_by_key(|range| (range.network(), range.prefix()));
        // Sorted so, CIDRs that overlap at all include a pair of neighbours that do.
        for pair in ranges.windows(2) {
            match pair {
                [outer, inner] if outer.contains(inner.network()) => {
                    self.faults.push(format!("its pod ranges {outer} and {inner} overlap"));
                }
                _ => {}
            }
        }
    }
}
