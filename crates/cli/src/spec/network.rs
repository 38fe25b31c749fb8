//! `--net` and `--publish`.

use roost_client::v1::{NetworkInterface, PortForward};

/// One `--net`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Net {
    /// Behind the host, without rights on it.
    User,
    /// On a TAP that exists.
    Tap(String),
    /// No interface at all.
    None,
}

/// One `--net`.
pub(crate) fn net(text: &str) -> Result<Net, String> {
    match text.split_once(':') {
        None if text == "user" => Ok(Net::User),
        None if text == "none" => Ok(Net::None),
        Some(("tap", name)) if !name.is_empty() => Ok(Net::Tap(name.to_owned())),
        _ => Err("permitted: user, tap:NAME, none".to_owned()),
    }
}

/// Interfaces for these; `none` stands alone.
pub(crate) fn interfaces(nets: &[Net]) -> Result<Vec<NetworkInterface>, String> {
    if nets.contains(&Net::None) {
        return if nets.len() == 1 {
            Ok(Vec::new())
        } else {
            Err("none cannot stand beside other networks".to_owned())
        };
    }
    let interface = |net: &Net| match net {
        Net::Tap(name) => NetworkInterface { kind: "tap".to_owned(), tap_device: name.clone(), ..Default::default() },
        Net::User | Net::None => NetworkInterface { kind: "user".to_owned(), ..Default::default() },
    };
    Ok(nets.iter().map(interface).collect())
}

/// One `--publish`: `[ADDRESS:]HOSTPORT:GUESTPORT[/tcp|udp]`, an IPv6 address in brackets.
pub(crate) fn publish(text: &str) -> Result<PortForward, String> {
    let bad = || format!("{text:?} is not [ADDRESS:]HOSTPORT:GUESTPORT[/tcp|udp]");
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, protocol @ ("tcp" | "udp"))) => (rest, protocol),
        Some(_) => return Err(bad()),
        None => (text, "tcp"),
    };
    let (rest, guest) = rest.rsplit_once(':').ok_or_else(bad)?;
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => (address, host),
        None => ("", rest),
    };
    let address = match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
        Some(v6) => v6,
        None if address.contains(':') => return Err(format!("an IPv6 address stands in brackets: [{address}]")),
        None => address,
    };
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(format!("{address:?} is not an IP address"));
    }
    let port = |text: &str| match text.parse::<u16>() {
        Ok(0) | Err(_) => Err(format!("{text:?} is not a port; permitted: 1 to 65535")),
        Ok(port) => Ok(u32::from(port)),
    };
    Ok(PortForward {
        protocol: protocol.to_owned(),
        host_address: address.to_owned(),
        host_port: port(host)?,
        guest_port: port(guest)?,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_published_on_an_address_or_on_the_default_one() {
        let found = |text| {
            let p = publish(text).unwrap();
            (p.host_address, p.host_port, p.guest_port, p.protocol)
        };
        assert_eq!(found("2222:22"), (String::new(), 2222, 22, "tcp".to_owned()));
        assert_eq!(found("0.0.0.0:53:53/udp"), ("0.0.0.0".to_owned(), 53, 53, "udp".to_owned()));
        assert_eq!(found("[::1]:80:80"), ("::1".to_owned(), 80, 80, "tcp".to_owned()));
        for bad in ["", "80", "0:80", "80:65536", "a:80:80", "80:80/sctp", "::1:80:80", "127.0.0.1,x:80:80"] {
            assert!(publish(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_is_one_of_three() {
        assert_eq!(net("tap:t0").unwrap(), Net::Tap("t0".to_owned()));
        for bad in ["", "tap", "tap:", "bridge:br0", "user:x"] {
            assert!(net(bad).is_err(), "{bad}");
        }
        assert!(interfaces(&[Net::None, Net::User]).is_err());
        assert_eq!(interfaces(&[Net::User, Net::Tap("t".to_owned())]).unwrap().len(), 2);
    }
}
