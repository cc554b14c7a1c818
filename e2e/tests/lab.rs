//! x
use e2e::*;
#[test]
fn lesson() -> anyhow::Result<()> {
    let t = std::time::Instant::now();
    let lab = Lab::lesson_dual()?;
    eprintln!("lab {:?}", t.elapsed());
    let w1 = lab.node("worker1")?;
    let pod = w1.pod("a")?;
    eprintln!("{}", pod.run_ok(&["ip", "a"])?);
    eprintln!("{}", w1.sh("ip a; ls -l /etc/mtab /etc/passwd; mount | tail -n 8; hostname; ps -ef; ping -c1 fd00:44::128; ping -c1 192.168.44.128")?);
    eprintln!("lab {:?}", t.elapsed());
    drop((lab, pod));
    eprintln!("lab {:?}", t.elapsed());
    let lab = Lab::start(Topology::nodes(20, Spread::Shared(10), Families::Both, Families::Both))?;
    eprintln!("20 {:?}", t.elapsed());
    drop(lab);
    eprintln!("20 {:?}", t.elapsed());
    Ok(())
}
