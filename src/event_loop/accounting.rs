//! What `hotloop.accounting` needs of the accounts.

use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;

use super::{Loop, ThisLoop};
use crate::core::recorder::accounts::Account;
use crate::cpython::args::Args;
use crate::cpython::errors::no_memory;
use crate::cpython::object::{Object, thread_ident, tuple, tuple_of};
use crate::method;

/// Begins new accounts, in which callbacks of so many seconds are slow; ends them for None.
fn account<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([slow], []) = args.parse()?;
    let slow: Option<f64> = slow.bind(py).extract()?;
    let core = &this.core;
    match slow {
        Some(slow) => core.recorder.accounts.start(slow, core.metrics.idle(), thread_ident()),
        None => core.recorder.accounts.stop(),
    }
    core.poll_policy.tick.find_out();
    core.metrics.delays.set_reads_each(slow.is_some(), &core.poll_policy.tick);
    core.note_recorded();
    Ok(Object::none(py))
}

/// Returns the names, the accounts, and the seconds of so many chains.
fn accounts<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([chains], []) = args.parse()?;
    let chains: usize = chains.bind(py).extract()?;
    let recorder = &this.core.recorder;
    recorder.accounts.catch_up(thread_ident());
    let accounts = recorder.accounts.all().ok_or_else(|| no_memory(py))?;
    // After the accounts, so that it has all their names.
    let names = recorder.names.all().ok_or_else(|| no_memory(py))?;
    let rows = accounts.into_iter().map(|(number, account)| row(&this, number, account));
    let rows = rows.collect::<PyResult<Vec<_>>>()?;
    let seconds = recorder.accounts.chain_seconds(chains).map(|seconds| Object::from_float(py, seconds));
    let seconds = seconds.collect::<PyResult<Vec<_>>>()?;
    tuple(py, &[&tuple_of(py, names.iter())?, &tuple_of(py, rows.iter())?, &tuple_of(py, seconds.iter())?])
}

/// In the order of the fields of hotloop.accounting.Account.
fn row(this: &ThisLoop<'_, '_>, number: u32, account: &Account) -> PyResult<Object> {
    let py = this.py();
    let count = |count: u64| Object::from_size(py, usize::try_from(count).unwrap_or(usize::MAX));
    let seconds = |seconds: f64| Object::from_float(py, seconds);
    let ticks = |ticks: u64| seconds(this.core.recorder.accounts.seconds(ticks));
    tuple(
        py,
        &[
            &count(u64::from(number))?,
            &count(u64::from(account.kind.get()))?,
            &count(account.polls.get())?,
            &seconds(account.seconds.get())?,
            &seconds(account.processor.get())?,
            &ticks(account.longest())?,
            &count(account.slow_polls.get())?,
            &seconds(account.slow_seconds.get())?,
            &seconds(account.scheduled.get())?,
            &ticks(account.longest_scheduled())?,
            &count(account.first_polls.get())?,
            &seconds(account.first_delay.get())?,
        ],
    )
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method!(Loop, "_account", "slow", account, "Begin new accounts; with None, keep none."),
        method!(
            any_thread Loop,
            "_accounts",
            "chains",
            accounts,
            "Return what hotloop.accounting.Accounting is made of."
        ),
    ]
}
