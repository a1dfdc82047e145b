//! A protection that this process lacks: the environment names the fault. Only with the feature `faults`.

/// Has the name of the fault.
pub const NAME: &str = "QBM_TEST_FAULT";

/// From now on this process has the fault that the environment names, if it names one.
pub fn put_in() {
    if let Ok(name) = std::env::var(NAME) {
        put_in_named(&name);
    }
}

#[cfg(feature = "faults")]
fn put_in_named(name: &str) {
    use qbm::faults::Fault;
    let known = [
        Fault::BitBeforePiece,
        Fault::BitBeforeShadow,
        Fault::BitsBeforeImage,
        Fault::IntentUnsynced,
        Fault::StampUnsynced,
    ];
    let fault = known.into_iter().find(|fault| format!("{fault:?}") == name);
    qbm::faults::put_in(fault.expect("a fault that is known here"));
}

#[cfg(not(feature = "faults"))]
fn put_in_named(name: &str) {
    panic!("no {name} without the feature `faults`");
}
