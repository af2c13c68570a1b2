"""The guests themselves do what the other tests here need them to do."""
import guests
import labkit


def test_reboot_from_inside(running):
    """`shutdown -r now` over SSH as a sudo user: a new boot id, one more boot, all volumes mounted, nova not asked."""
    before, boot_id = guests.picture()['bfv1'], guests.boot_id('bfv1')
    since = labkit.actions('bfv1')
    config = str(labkit.ETC / 'ssh_config')
    argv = ('ssh', '-F', config, '-o', 'BatchMode=yes', 'bfv1', 'sudo', '-n', 'shutdown', '-r', 'now')
    labkit.run(argv, check=False, timeout=60)

    labkit.wait_until(lambda: guests.answers('bfv1') and guests.boot_id('bfv1') != boot_id, guests.BOOT, 'a new boot', every=2)
    labkit.wait_until(lambda: guests.writing('bfv1'), 60, 'bfv1 writes', every=2)
    assert guests.boots('bfv1') == before[0] + 1
    assert labkit.actions('bfv1') == since


def test_sudo_that_asks(running):
    """The user `careful` may not do anything without a password."""
    result = labkit.run(('ssh', '-F', str(labkit.ETC / 'ssh_config'), '-o', 'BatchMode=yes', '-l', 'careful', 'cl1',
                          'sudo -n shutdown -r now'), check=False, timeout=60)
    assert result.rc == 1 and 'a password is required' in result.err, result


def test_missing_disk(running):
    """A disk that fstab does not call nofail: waited for, and the boot goes on when it comes; too late is emergency mode."""
    fstab = '/etc/fstab'
    log = labkit.volume_id('web1-log')[:20]

    def options(timeout):
        guests.ssh('web1', f"sed -i -E '/{log}/s/nofail|x-systemd.device-timeout=[0-9]+/{timeout}/' {fstab} && sync")

    def boot_without():
        assert labkit.act('web1', 'os-stop').status == 202
        labkit.wait_status(90, web1='SHUTOFF')
        assert labkit.detach('web1', 'web1-log').status == 202
        labkit.wait_volume(30, web1_log='available')
        assert labkit.act('web1', 'os-start').status == 202
        labkit.wait_status(60, web1='ACTIVE')
        labkit.wait_until(lambda: 'A start job is running for' in guests.console('web1'), guests.BOOT, 'the guest waits')
        assert not guests.answers('web1')

    count = guests.boots('web1')
    options('x-systemd.device-timeout=300')
    boot_without()
    assert labkit.attach('web1', 'web1-log').status == 200          # in time
    labkit.wait_until(lambda: guests.answers('web1'), guests.BOOT, 'the boot goes on', every=2)
    labkit.wait_until(lambda: guests.writing('web1'), 60, 'web1 writes', every=2)
    assert guests.boots('web1') == count + 1

    options('x-systemd.device-timeout=3')
    boot_without()
    labkit.wait_until(lambda: 'You are in emergency mode' in guests.console('web1'), 60, 'emergency mode')
    assert labkit.attach('web1', 'web1-log').status == 200          # too late
    labkit.wait_volume(30, web1_log='in-use')
    assert not guests.answers('web1')
    assert labkit.act('web1', 'reboot', {'type': 'HARD'}).status == 202
    labkit.wait_until(lambda: guests.answers('web1'), guests.BOOT, 'a reboot helps', every=2)
    labkit.wait_until(lambda: guests.writing('web1'), 60, 'web1 writes', every=2)
    options('nofail')
    assert guests.boots('web1') == count + 3


def test_a_guest_dies(running):
    """lab/guest-off: its QEMU is gone at once, its definition stays, nova finds out by itself."""
    before = labkit.guest_def('cl1')
    assert before['state'] == 'running'
    labkit.guest_off('cl1')
    labkit.wait_status(120, cl1='SHUTOFF')
    assert labkit.guest_def('cl1') == {**before, 'state': 'shutdown'}
    assert labkit.act('cl1', 'os-start').status == 202
    guests.all_run()
